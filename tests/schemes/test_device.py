"""Every scheme's device expression, compiled for the CPU, against numpy on the decoded weight."""

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")
from tvm import relax  # noqa: E402
from tvm.relax.frontend import nn  # noqa: E402

from mlc_bridge.schemes import SCHEMES  # noqa: E402
from mlc_bridge.schemes.dense import Dense  # noqa: E402

N, K, ROWS = 32, 256, 3
# Families whose activations are quantized too compute something else than x @ W^T; see their tests.
WEIGHT_ONLY = [
    s.name
    for s in SCHEMES.values()
    if not s.name.startswith(("e4m3", "e5m2", "i8_i8"))
    and not s.name.endswith(("block_scale", "dynamic"))
]
EPSILON = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24}


class Layer(nn.Module):
    def __init__(self, scheme, call):
        self.scheme, self.call = scheme, call
        self.suffixes = list(scheme.params(N, K))
        for suffix, spec in scheme.params(N, K).items():
            setattr(self, suffix, nn.Parameter(spec.shape, spec.dtype))

    def forward(self, x):
        return self.call(self.scheme, x, {s: getattr(self, s) for s in self.suffixes})


def run(scheme, call, x, stored):
    spec = {"forward": {"x": nn.spec.Tensor(x.shape, x.dtype.name)}}
    module, params = Layer(scheme, call).export_tvm(spec)
    lib = relax.build(relax.transform.LegalizeOps()(module), "llvm")
    given = [tvm.runtime.tensor(np.ascontiguousarray(stored[name])) for name, _ in params]
    vm = relax.VirtualMachine(lib, tvm.cpu())
    return vm["forward"](tvm.runtime.tensor(x), *given).numpy()


@pytest.fixture(scope="module")
def w():
    return np.random.default_rng(0).normal(size=(N, K)).astype(np.float32)


def stored_and_exact(scheme, w):
    if isinstance(scheme, Dense):
        stored = {"weight": w.astype(tvm_dtype(scheme.model_dtype))}
        return stored, stored["weight"].astype(np.float32)
    stored = scheme.encode(scheme.quantize(w))
    return stored, scheme.decode(stored).dequantize()[:, :K]


def tvm_dtype(name):
    import ml_dtypes

    return getattr(ml_dtypes, name, None) or np.dtype(name)


@pytest.mark.parametrize("name", WEIGHT_ONLY)
def test_linear(name, w):
    scheme = SCHEMES[name]
    stored, exact = stored_and_exact(scheme, w)
    x = np.random.default_rng(1).normal(size=(1, ROWS, K)).astype(tvm_dtype(scheme.model_dtype))
    got = run(scheme, lambda s, x, p: s.linear(x, p, "float32"), x, stored)
    product = np.abs(x.astype(np.float64)) @ np.abs(exact.T.astype(np.float64))
    expected = x.astype(np.float64) @ exact.T.astype(np.float64)
    # The dequantized weight rounds to the model dtype once; sums run in float32.
    bound = product * (1.5 * EPSILON[scheme.model_dtype] + K * EPSILON["float32"])
    assert got.shape == (1, ROWS, N)
    assert np.all(np.abs(got - expected) <= bound)


@pytest.mark.parametrize("name", WEIGHT_ONLY)
def test_embedding_rows(name, w):
    scheme = SCHEMES[name]
    if name.endswith("_0"):  # embeddings of the KN schemes lie NK
        scheme = scheme.for_role("embedding")
    stored, exact = stored_and_exact(scheme, w)
    ids = np.array([5, 0, 31, 5], np.int32)
    got = run(scheme, lambda s, ids, p: s.embedding(ids, p, K, "float32"), ids, stored)
    assert got.shape == (4, K)
    bound = np.abs(exact[ids]) * EPSILON[scheme.model_dtype] * 1.01
    assert np.all(np.abs(got - exact[ids]) <= bound)


def test_every_scheme_keeps_its_own_name():
    assert all(SCHEMES[name].name == name for name in SCHEMES)
