"""The same codes, zeros and scales in every tool's 4-bit layout, written the slow and plain way.

A writer takes codes uint8 ``[n, k]``, zeros uint8 ``[n, k/g]`` and scales float16 ``[n, k/g]`` and
gives the layer's tensors by suffix; ``SETTINGS`` has each tool's quantization settings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
Tensors = dict[str, np.ndarray]


def words(codes: np.ndarray, order: list[int] | None = None) -> np.ndarray:
    """Eight codes of the last axis in an int32, the lowest nibble first."""
    split = codes.reshape(*codes.shape[:-1], -1, 8)[..., order or list(range(8))]
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    return np.bitwise_or.reduce(split.astype(np.uint32) << shifts, axis=-1).view(np.int32)


def padded(array: np.ndarray, k: int) -> np.ndarray:
    """Groups filled up with zeros as AutoAWQ's GEMV kernels want them."""
    multiple = {128: 8, 64: 16, 32: 32}[k // array.shape[1]]
    missing = -array.shape[1] % (multiple * -(-k // 1024))
    return np.pad(array, [(0, 0), (0, missing)])


def gemm(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> Tensors:
    return {
        "qweight": words(codes.T, AWQ_ORDER),
        "qzeros": words(zeros.T, AWQ_ORDER),
        "scales": scales.T,
    }


def gemv(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> Tensors:
    k = codes.shape[1]
    return {
        "qweight": words(codes),
        "qzeros": words(padded(zeros, k)),
        "scales": padded(scales, k),
    }


def gemv_fast_words(codes: np.ndarray) -> np.ndarray:
    """llm-awq's packer as its source describes it: two reorderings, then four rows interleaved."""
    n, k = codes.shape
    x = codes.reshape(n, k // 32, 4, 4, 2).transpose(0, 1, 3, 2, 4)
    x = x.reshape(n, k // 8, 4, 2).transpose(0, 1, 3, 2)
    x = x.reshape(n // 4, 4, k // 64, 64).transpose(0, 2, 1, 3).reshape(n // 4, k // 64, 64, 4)
    x = x.astype(np.uint16)
    packed = x[..., 0] | x[..., 1] << 4 | x[..., 2] << 8 | x[..., 3] << 12
    return packed.reshape(n // 4, k)


def gemv_fast(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> Tensors:
    k = codes.shape[1]
    product = -(scales.astype(np.float32) * zeros).astype(np.float16)
    return {
        "qweight": gemv_fast_words(codes).view(np.int16),
        "qzeros": padded(product, k).T,
        "scales": padded(scales, k).T,
    }


def llm_awq(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> Tensors:
    tensors = gemv_fast(codes, zeros, scales)
    tensors["scaled_zeros"] = tensors.pop("qzeros")
    return tensors


def marlin_words(codes: np.ndarray) -> np.ndarray:
    """Marlin's packer: tiles of 16 x 16, then its permutation of 1024 codes, thread by thread."""
    n, k = codes.shape
    tiles = codes.T.reshape(k // 16, 16, n // 16, 16).transpose(0, 2, 1, 3).reshape(-1, 1024)
    packed = np.zeros((len(tiles), 128), np.uint32)
    for thread in range(32):
        rows = [2 * (thread % 4) + r for r in (0, 1, 8, 9)]
        flat = [16 * row + thread // 4 + 8 * half for half in (0, 1) for row in rows]
        for tile in range(4):
            for position, i in enumerate(AWQ_ORDER):
                code = tiles[:, 256 * tile + flat[i]].astype(np.uint32)
                packed[:, 4 * thread + tile] |= code << np.uint32(4 * position)
    return packed.reshape(k // 16, 2 * n)


def marlin(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> Tensors:
    assert (zeros == 8).all()
    order = [i + 8 * j for i in range(8) for j in range(8)]
    if scales.shape[1] == 1:
        order = [2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)]
    permuted = scales.T.reshape(-1, len(order))[:, order].reshape(scales.T.shape)
    return {"qweight": marlin_words(codes).view(np.int32), "scales": permuted}


def gptq_v2(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> Tensors:
    k, groups = codes.shape[1], scales.shape[1]
    return {
        "qweight": words(codes).T,
        "qzeros": words(zeros.T),
        "scales": scales.T,
        "g_idx": (np.arange(k) // (k // groups)).astype(np.int32),
    }


def gptq_v1(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> Tensors:
    tensors = gptq_v2(codes, zeros, scales)
    less_one = tensors["qzeros"].view(np.uint32) - np.uint32(0x11111111)
    return {**tensors, "qzeros": less_one.view(np.int32)}


def compressed(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> Tensors:
    return {
        "weight_packed": words(codes),
        "weight_zero_point": words(zeros.T).T,
        "weight_scale": scales,
        "weight_shape": np.array(codes.shape),
    }


WRITERS: dict[str, Callable[..., Tensors]] = {
    "autoawq": gemm,
    "autoawq-gemv": gemv,
    "autoawq-gemv-fast": gemv_fast,
    "autoawq-marlin": marlin,
    "llm-awq": llm_awq,
    "gptq v1": gptq_v1,
    "gptq v2": gptq_v2,
    "compressed-tensors": compressed,
}


def settings(name: str, group: int) -> dict[str, Any] | None:
    """The ``quantization_config`` that goes with a writer's files."""
    awq = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True}
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": False, "sym": False}
    weights = {"num_bits": 4, "group_size": group, "strategy": "group", "symmetric": False}
    return {
        "autoawq": {**awq, "version": "gemm"},
        "autoawq-gemv": {**awq, "version": "gemv"},
        "autoawq-gemv-fast": {**awq, "version": "gemv_fast"},
        "autoawq-marlin": {**awq, "version": "marlin", "zero_point": False},
        "llm-awq": None,
        "gptq v1": {**gptq, "checkpoint_format": "gptq"},
        "gptq v2": {**gptq, "checkpoint_format": "gptq_v2"},
        "compressed-tensors": {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        },
    }[name]
