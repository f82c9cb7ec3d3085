"""Every scheme's kernels give the same bits whether the process flushes denormals or not."""

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")
import ml_dtypes  # noqa: E402
from flush import denormals_flushed, needs_x86  # noqa: E402
from tvm import relax  # noqa: E402
from tvm.ir.transform import Sequential  # noqa: E402
from tvm.relax.frontend import nn  # noqa: E402

from mlc_bridge.compiler.pipeline import fuse, lower, plan_memory, schedule  # noqa: E402
from mlc_bridge.compiler.target import host_target  # noqa: E402
from mlc_bridge.schemes import SCHEMES, for_role  # noqa: E402
from mlc_bridge.schemes.dense import Dense  # noqa: E402

pytestmark = needs_x86
N, K = 48, 256
SMALL = 6  # rows of W and of x whose scales or values are denormal in float16


def kernels(scheme):
    """Rows of a family that differ in the size of groups or in roles have the same kernels."""
    traits = ("bits", "transposed", "float8")
    return (type(scheme), scheme.model_dtype, *(getattr(scheme, t, None) for t in traits))


NO_ROUNDING = ("i8_i8_f16_static",)  # of a float weight, which says nothing of its input
ROUNDING = [s for s in SCHEMES.values() if s.name not in NO_ROUNDING]
NAMES = sorted({kernels(s): s.name for s in ROUNDING}.values())


class Layer(nn.Module):
    """The kernels of a model: any number of rows, and rows of an embedding."""

    def __init__(self, scheme):
        self.scheme = scheme
        for suffix, spec in scheme.params(N, K).items():
            setattr(self, suffix, nn.Parameter(spec.shape, spec.dtype))

    def stored(self):
        return {suffix: getattr(self, suffix) for suffix in self.scheme.params(N, K)}

    def any(self, x):
        return self.scheme.linear(x, self.stored(), self.scheme.model_dtype)

    def take(self, ids):
        return self.scheme.embedding(ids, self.stored(), K, self.scheme.model_dtype)


def compiled(scheme):
    """A virtual machine with the layer's functions, and the names of its parameters."""
    rows = {"x": nn.spec.Tensor((1, "rows", K), scheme.model_dtype)}
    spec = {"any": rows, "take": {"ids": nn.spec.Tensor(("count",), "int32")}}
    if not scheme.quantizes("embedding") and not hasattr(scheme, "group"):
        del spec["take"]
    mod, names = Layer(scheme).export_tvm(spec)
    target = host_target()
    steps = [tvm.tirx.transform.BindTarget(target), *fuse(), *schedule(target), *plan_memory()]
    with target:
        mod = Sequential([*steps, *lower(target)])(mod)
        built = relax.build(mod, target, relax_pipeline=None)
    return relax.VirtualMachine(built, tvm.cpu()), [name for name, _ in names], list(spec)


def parameters(scheme):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((N, K)) * 10.0 ** rng.uniform(-6, -2, (N, K))  # many subnormal codes
    w[:SMALL] *= 1e-6
    if isinstance(scheme, Dense):
        return {"weight": w.astype(getattr(ml_dtypes, scheme.model_dtype, scheme.model_dtype))}
    return scheme.encode(scheme.quantize(w.astype(np.float32)))


@pytest.mark.parametrize("name", NAMES)
def test_every_kernel_gives_the_same_bits(name):
    scheme = for_role(SCHEMES[name], "embedding" if name.endswith("_0") else "linear")
    vm, names, functions = compiled(scheme)
    params = parameters(scheme)
    if "q_calibration_scale" in params:
        params["q_calibration_scale"] = np.array([0.01], np.float32)
    given = [tvm.runtime.tensor(np.ascontiguousarray(params[n])) for n in names]
    dtype = getattr(ml_dtypes, scheme.model_dtype, scheme.model_dtype)
    inputs = []
    for rows in (1, 2, 5, 40):
        x = np.random.default_rng(rows).standard_normal((1, rows, K))
        x[:, -1, :SMALL] *= 1e-6
        inputs.append(("any", tvm.runtime.tensor(x.astype(dtype))))
    if "take" in functions:
        inputs.append(("take", tvm.runtime.tensor(np.arange(N, dtype=np.int32))))

    def run():
        return [vm[function](x, *given) for function, x in inputs]

    usual = run()
    with denormals_flushed():
        flushed = run()
    for (function, x), a, b in zip(inputs, usual, flushed, strict=True):
        a, b = a.numpy().astype(np.float32), b.numpy().astype(np.float32)
        assert np.abs(a).max() > 0
        assert np.array_equal(a, b), (function, x.shape, np.abs(a - b).max(), np.abs(a).max())
