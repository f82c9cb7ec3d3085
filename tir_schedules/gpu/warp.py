"""Words for CUDA kernels: thread axes, wide copies, pairs of half types, tensor-core instructions.

Each word with PTX or a CUDA intrinsic in it is one small device function, printed once into the
source. The instruction every kernel here is built on is `mma.m16n8k16` (sm_80 and newer):
D[16, 8] += A[16, 16] B[16, 8] in float32, spread over the 32 lanes of a warp, g = lane / 4 and
t = lane % 4, two neighbours in one 32-bit register:

    a0 = A[g, 2t ...]  a1 = A[g + 8, 2t ...]  a2 = A[g, 2t + 8 ...]  a3 = A[g + 8, 2t + 8 ...]
    b0 = B[2t ..., g]  b1 = B[2t + 8 ..., g]
    d0 d1 = D[g, 2t ...]                      d2 d3 = D[g + 8, 2t ...]

The numbering of the 16 columns k is free as long as A and B agree, and so is that of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from tvm import ir, tirx
from tvm.backend.cuda.op import cuda_func_call
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

WARP = 32
HALF = ("float16", "bfloat16")
_TYPES = {
    "void": "void",
    "unsigned int": "uint32",
    "int": "int32",
    "float": "float32",
    "half": "float16",
}
_SHORT = {"float16": "f16", "bfloat16": "bf16", "float8_e4m3fn": "e4m3", "float8_e5m2": "e5m2"}


def compute_capability(target: Target) -> int:
    """80 for sm_80, 90 for sm_90a; 0 where the target names no architecture."""
    digits = "".join(filter(str.isdigit, str(target.attrs.get("arch", ""))))
    return int(digits) if digits else 0


@contextmanager
def kernel(index: str, blocks: Sequence[ir.Expr], warps: int) -> Iterator[tuple[ir.Expr, ...]]:
    """One kernel: block indices, warp and lane, in the integer type of the loops."""
    with ExitStack() as stack:
        axes = [
            stack.enter_context(T.thread_binding(extent, thread=f"blockIdx.{axis}"))
            for extent, axis in zip(blocks, "xyz", strict=False)
        ]
        axes.append(stack.enter_context(T.thread_binding(warps, thread="threadIdx.y")))
        axes.append(stack.enter_context(T.thread_binding(WARP, thread="threadIdx.x")))
        yield tuple(T.bind(axis.astype(index)) for axis in axes)


def ceil_div(a: ir.Expr, b: int) -> ir.Expr:
    """a / b, rounded up."""
    return tirx.floordiv(a + (b - 1), tirx.IntImm(str(a.ty), b))


def barrier() -> None:
    """All threads of the block meet."""
    T.evaluate(T.tvm_storage_sync("shared"))


def u32(value: int) -> ir.Expr:
    return tirx.IntImm("uint32", value)


def _i32(value: int) -> ir.Expr:
    return tirx.IntImm("int32", value)


def address(buffer: ir.Var, indices: Sequence[ir.Expr | int]) -> ir.Expr:
    """The address of one element."""
    return tirx.address_of(tirx.BufferLoad(buffer, list(indices)))


def by_address(shape: Sequence[int], dtype: str, scope: str) -> ir.Var:
    """A buffer in "shared" or "local" memory that is used by addresses.

    TVM cuts a buffer down to the elements it sees accessed, so it is shown the last one. It does
    not see accesses through addresses as such: the barriers of shared memory are ours alone.
    """
    buffer = T.alloc_buffer(tuple(shape), dtype, scope=scope)
    ends = (address(buffer, [0] * len(shape)), address(buffer, [e - 1 for e in shape]))
    T.evaluate(_call("whole", "void", "const void* first, const void* last", "", *ends))
    return buffer


def copy(size: int, to: ir.Expr, source: ir.Expr) -> None:
    """Copy 4, 8 or 16 aligned bytes, whatever their type, in one access."""
    vector = {4: "unsigned int", 8: "uint2", 16: "uint4"}[size]
    body = f"*({vector}*)to = *(const {vector}*)from;"
    T.evaluate(_call(f"copy_{size}", "void", "void* to, const void* from", body, to, source))


def copy_rest_zero(to: ir.Expr, source: ir.Expr, size: ir.Expr) -> None:
    """Start copying `size` (16 or 0) bytes into shared memory; what is left of 16 becomes zero."""
    body = """unsigned int at = (unsigned int)__cvta_generic_to_shared(to);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
      :: "r"(at), "l"(from), "r"(size) : "memory");"""
    parameters = "void* to, const void* from, int size"
    T.evaluate(_call("copy_async_16", "void", parameters, body, to, source, size.astype("int32")))


def close_copies() -> None:
    """Everything started since the last call is one group."""
    T.evaluate(_call("copy_async_close", "void", "", _asm("cp.async.commit_group;")))


def wait_copies(left: int) -> None:
    """Wait until at most `left` groups are under way."""
    name = f"copy_async_wait_{left}"
    T.evaluate(_call(name, "void", "", _asm(f"cp.async.wait_group {left};")))


def mma(dtype: str, d: ir.Expr, a: Sequence[ir.Expr], b: Sequence[ir.Expr]) -> None:
    """d[0 ... 3] += A B, `d` the address of four floats; 16 half or 32 float8 columns k."""
    short = _SHORT[dtype]
    shape = "m16n8k16" if dtype in HALF else "m16n8k32"
    body = f"""asm volatile("mma.sync.aligned.{shape}.row.col.f32.{short}.{short}.f32 "
      "{{%0, %1, %2, %3}}, {{%4, %5, %6, %7}}, {{%8, %9}}, {{%0, %1, %2, %3}};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));"""
    registers = ", ".join(f"unsigned int {r}" for r in ("a0", "a1", "a2", "a3", "b0", "b1"))
    T.evaluate(_call(f"mma_{short}", "void", f"float* d, {registers}", body, d, *a, *b))


def load_squares(registers: ir.Expr, row: ir.Expr, transposed: bool) -> None:
    """Four 8 x 8 squares of 16-bit values from shared memory, square i into register i.

    Lane l gives the address of row l % 8 of square l / 8; afterwards lane l holds elements
    2t, 2t + 1 of row g (of column g where `transposed`).
    """
    name, trans = ("load_squares_t", ".trans") if transposed else ("load_squares", "")
    body = f"""unsigned int at = (unsigned int)__cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%0, %1, %2, %3}}, [%4];"
      : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");"""
    T.evaluate(_call(name, "void", "unsigned int* to, const void* row", body, registers, row))


def subtract_pair(dtype: str, a: ir.Expr, b: ir.Expr) -> ir.Expr:
    """a - b on two half values each."""
    return _pair_operation(dtype, "sub", a, b)


def multiply_pair(dtype: str, a: ir.Expr, b: ir.Expr) -> ir.Expr:
    """a * b on two half values each."""
    return _pair_operation(dtype, "mul", a, b)


def pack_pair(dtype: str, low: ir.Expr, high: ir.Expr) -> ir.Expr:
    """Two floats, rounded, as one register of half values."""
    short = _SHORT[dtype]
    vector, word = {
        "f16": ("__half2", "__floats2half2_rn"),
        "bf16": ("__nv_bfloat162", "__floats2bfloat162_rn"),
    }[short]
    body = f"""{vector} r = {word}(low, high);
  return *(unsigned int*)&r;"""
    return _call(f"pack_pair_{short}", "unsigned int", "float low, float high", body, low, high)


def other_lane(value: ir.Expr, mask: int) -> ir.Expr:
    """The float of lane `lane ^ mask`."""
    body = "return __shfl_xor_sync(0xffffffffu, value, mask);"
    return _call("other_lane", "float", "float value, int mask", body, value, _i32(mask))


def of_lane(value: ir.Expr, lane: ir.Expr) -> ir.Expr:
    """The float of one lane."""
    body = "return __shfl_sync(0xffffffffu, value, lane);"
    return _call("of_lane", "float", "float value, int lane", body, value, lane)


def largest(value: ir.Expr) -> ir.Expr:
    """The largest int32 of the warp."""
    body = "return __reduce_max_sync(0xffffffffu, value);"
    return _call("largest", "int", "int value", body, value)


def exp2(value: ir.Expr) -> ir.Expr:
    """2**value by the special function unit, within 2 ulp; denormal results are zero."""
    body = """float r;
  asm volatile("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(value));
  return r;"""
    return _call("exp2_near", "float", "float value", body, value)


def soft_cap(value: ir.Expr, cap: float) -> ir.Expr:
    """cap tanh(value / cap), as cap (1 - 2 / (1 + e**(2 value / cap)))."""
    rise = exp2(value * tirx.FloatImm("float32", 2 * 1.4426950408889634 / cap))
    body = "return cap - __fdividef(cap + cap, 1.0f + rise);"
    cap = tirx.FloatImm("float32", cap)
    return _call("soft_cap", "float", "float cap, float rise", body, cap, rise)


def half_of(dtype: str, code: ir.Expr) -> ir.Expr:
    """The float16 that a float8 code (uint8) stands for; before sm_89 by its bits.

    e5m2 is the upper half of a float16; e4m3 has a mantissa bit more and an exponent 8 smaller.
    """
    short = _SHORT[dtype]
    bits, scale = {
        "e4m3": ("(code & 0x80) << 8 | (code & 0x7f) << 7", 256),
        "e5m2": ("code << 8", 1),
    }[short]
    body = f"""#if __CUDA_ARCH__ >= 890
  __nv_fp8_{short} value;
  value.__x = code;
  return (half)value;
#else
  unsigned short bits = {bits};
  return *(half*)&bits * (half){scale}.0f;
#endif"""
    return _call(f"half_of_{short}", "half", "unsigned char code", body, code)


def _pair_operation(dtype: str, name: str, a: ir.Expr, b: ir.Expr) -> ir.Expr:
    short = _SHORT[dtype]
    vector = {"f16": "__half2", "bf16": "__nv_bfloat162"}[short]
    body = f"""{vector} r = __h{name}2(*({vector}*)&a, *({vector}*)&b);
  return *(unsigned int*)&r;"""
    parameters = "unsigned int a, unsigned int b"
    return _call(f"{name}_pair_{short}", "unsigned int", parameters, body, a, b)


def _asm(line: str) -> str:
    return f'asm volatile("{line}" ::: "memory");'


def _call(name: str, returns: str, parameters: str, body: str, *arguments: ir.Expr) -> ir.Expr:
    source = f"\n__device__ __forceinline__ {returns} {name}({parameters}) {{\n  {body}\n}}\n"
    dtype = _TYPES[returns]
    return cuda_func_call(name, *arguments, source_code=source, return_type=dtype)
