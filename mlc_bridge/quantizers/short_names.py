"""Short names of recipes: ``METHODS-wXaY[-gN | -channel | -tensor][-sym | -asym]``.

    rtn-w4a16-g128    awq-w4a16-g128    gptq-w4a16-g128-sym    quarot-gptq-w4a16-g128
    awq-gptq-w4a16-g32    omniquant-w4a16-g128    smoothquant-w8a8    rtn-w8a8-channel

Methods stand in the order in which they run: rotation, scaling, rounding. awq clips where it rounds
to nearest; a8 means inputs quantized at run time, one scale a token.
"""

from __future__ import annotations

import re
from typing import Any

from mlc_bridge.errors import ConfigError
from mlc_bridge.quantizers.recipe import (
    Awq,
    Flex,
    Gptq,
    Grid,
    Inputs,
    OmniQuant,
    OsPlus,
    Outliers,
    Recipe,
    Rotate,
    Rtn,
    Smooth,
)
from mlc_bridge.registry import did_you_mean

EDITS: dict[str, Any] = {
    "quarot": Rotate(),
    "awq": Awq(),
    "smoothquant": Smooth(),
    "osplus": OsPlus(),
    "cbq": Outliers(),
    "flex": Flex(),
}
ROUNDINGS: dict[str, Any] = {"rtn": Rtn(), "gptq": Gptq(), "omniquant": OmniQuant()}
CLIP_STEPS = 20  # twice LLMC's: KL 0.0336 in place of 0.0351 on the example model
FORM = re.compile(
    r"(?P<methods>[a-z]+(?:-[a-z]+)*)-w(?P<bits>\d)a(?P<inputs>8|16)"
    r"(?:-(?:g(?P<group>\d+)|(?P<whole>channel|tensor)))?(?:-(?P<sign>sym|asym))?"
)


def is_short(text: str) -> bool:
    return FORM.fullmatch(text) is not None


def short(text: str) -> Recipe:
    """The recipe of a short name. Raises ConfigError for a method that there is not."""
    found = FORM.fullmatch(text)
    if found is None:
        raise ConfigError("no such recipe", found=text, expected="a file, or a name such as "
                          "awq-w4a16-g128, gptq-w4a16-g128-sym, smoothquant-w8a8")  # fmt: skip
    methods = found["methods"].split("-")
    known = {**EDITS, **ROUNDINGS}
    for method in methods:
        if method not in known:
            raise ConfigError("unknown method", where=text, found=method,
                              expected=", ".join(known),
                              todo=did_you_mean(method, known))  # fmt: skip
    rounding = [ROUNDINGS[m] for m in methods if m in ROUNDINGS] or [Rtn()]
    if len(rounding) > 1:
        raise ConfigError("a recipe rounds once", where=text, found=" and ".join(methods))
    bits, act = int(found["bits"]), int(found["inputs"])
    group = found["group"] or (None if found["whole"] or bits == 8 else "128")
    symmetric = found["sign"] == "sym" or (found["sign"] is None and act == 8)
    granularity: Any = "group" if group else found["whole"] or "channel"
    grid = Grid(
        bits=bits, symmetric=symmetric, granularity=granularity, group_size=int(group or 128)
    )
    return Recipe(
        name=text,
        edits=tuple(EDITS[m] for m in methods if m in EDITS),
        clip="awq" in methods and isinstance(rounding[0], Rtn) and grid.granularity != "tensor",
        clip_steps=CLIP_STEPS,
        rounding=rounding[0],
        weights=grid,
        inputs=Inputs(kind="dynamic" if act == 8 else "float"),
        sequential=isinstance(rounding[0], Gptq),
    )
