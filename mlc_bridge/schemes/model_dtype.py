"""The dtype of activations, norms and unquantized weights, and how a float tensor gets there."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from mlc_bridge.errors import CannotExpress
from mlc_bridge.packing import Array

NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
}


def narrow(array: Array, dtype: str, name: str = "weight") -> Array:
    """A float tensor in the model dtype, rounded to nearest even; itself where the dtype is equal.

    Raises CannotExpress, naming ``name``, where a finite value would become infinite.
    """
    wanted = NUMPY_DTYPES[dtype]
    if array.dtype == wanted:
        return array
    with np.errstate(over="ignore"):
        result = array.astype(wanted)
    if not np.isfinite(result).all():
        lost = array[np.isinf(result) & np.isfinite(array)]
        if lost.size:
            raise CannotExpress(
                name,
                dtype,
                f"{float(lost[0]):g} overflows",
                todo="Choose a scheme whose model dtype has the range, such as bfloat16",
            )
    return result
