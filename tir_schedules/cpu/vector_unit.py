"""What the vector unit of a CPU target can do: the one place that reads its feature flags.

LLVM's own answer, `llvm_get_vector_width`, is 512 for every x86-64, so kernels for 16 lanes went to
machines that have 8. The flags are those of the target, with all that its `-mcpu` implies and
`-mattr` adds or takes away:

    ============  =====  =========  =============================================================
    target        lanes  registers  products of int16 pairs, of uint8 and int8 quads, of bfloat16
    ============  =====  =========  =============================================================
    AVX-512       16     32         avx512bw, avx512vnni, avx512bf16; AMX tiles with amx-bf16
    AVX2          8      16         avx2, avxvnni
    NEON          4      32
    SSE2          4      16
    ============  =====  =========  =============================================================
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tvm.target import Target
from tvm.target.codegen import llvm_get_system_triple, target_has_features

NO_PAIRS = "the target multiplies no int16 pairs"
CORES = 8  # of a target that does not say


@dataclass(frozen=True)
class VectorUnit:
    """`lanes` float32 values in each of `registers`, and the instructions that kernels ask for.

    `pairs`, `vnni`, `bf16`: vpmaddwd, vpdpwssd and vpdpbusd, vdpbf16ps on whole registers.
    `tiles`: AMX bfloat16, which needs Linux to lend them. `cores`: how many work at once.
    """

    lanes: int
    registers: int
    pairs: bool = False
    vnni: bool = False
    bf16: bool = False
    tiles: bool = False
    cores: int = CORES

    @staticmethod
    def of(target: Target | None) -> VectorUnit:
        """The unit of an `llvm` target; `None` stands for the least."""
        if target is None:
            return VectorUnit(4, 16)

        def has(*features: str) -> bool:
            return all(bool(target_has_features(f, target)) for f in features)

        cores = int(target.attrs.get("num-cores", 0)) or CORES
        if has("avx512f"):
            whole = has("avx512bw")
            bf16 = whole and has("avx512bf16")
            tiles = bf16 and has("amx-tile", "amx-bf16") and _lends_tiles(target)
            return VectorUnit(16, 32, whole, whole and has("avx512vnni"), bf16, tiles, cores)
        if has("avx2"):
            return VectorUnit(8, 16, pairs=True, vnni=has("avxvnni"), cores=cores)
        return VectorUnit(4, 32 if has("neon") else 16, cores=cores)

    @property
    def pair_product(self) -> str:
        """The instruction that multiplies int16 pairs."""
        return "vpdpwssd" if self.vnni else "vpmaddwd"

    @property
    def byte_product(self) -> str:
        """The instruction that multiplies bytes."""
        return "vpdpbusd" if self.vnni else "vpmaddwd" if self.pairs else "integer"

    def at_least(self, lanes: int) -> VectorUnit:
        """For kernels whose vectors hold `lanes` or more: LLVM lays one over several registers."""
        times = max(1, lanes // self.lanes)
        return replace(self, lanes=self.lanes * times, registers=self.registers // times)

    def half(self) -> VectorUnit:
        """Vectors half as long; what is made for whole ones of AVX-512 alone is not there."""
        return replace(self, lanes=self.lanes // 2, bf16=False, tiles=False)

    def parallel_tasks(self, units: int, size: int) -> int:
        """How many tasks for `units` of work over `size` bytes of weights.

        One where waking the pool would cost as much as the work; else a few per core, so that a
        core that was late does not hold up the rest.
        """
        if size < 48 * 1024:
            return 1
        return max(1, min(units, self.cores if size < 1 << 20 else 2 * self.cores))


def _lends_tiles(target: Target) -> bool:
    triple = str(target.attrs.get("mtriple", "") or llvm_get_system_triple())
    return triple.startswith("x86_64") and "linux" in triple
