"""A JSON schema made ready for the grammar library: bounded, and ``allOf`` merged.

The library recurses without a limit (a pattern of 100,000 nested groups ends the process), leaves
out what it does not know and takes several ``allOf`` for "anything". So size and depth are bounded
here, ``allOf`` is merged, and what would be left out is refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mlc_bridge.engine.structure import Structure
from mlc_bridge.errors import EngineError

MOST_BYTES, MOST_DEPTH, LONGEST_PATTERN, MOST_GROUPS = 128 * 1024, 48, 2048, 24
IGNORED_BY_GRAMMARS = (
    "not", "if", "contains", "uniqueItems", "multipleOf", "dependentRequired", "dependentSchemas",
    "unevaluatedProperties", "unevaluatedItems",
)  # fmt: skip
_STRICTER = {
    **dict.fromkeys(("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"), max),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"), min),
}
Schema = dict[str, Any]


def prepared(structure: Structure) -> Structure:
    """The structure as the grammar library shall see it. Raises EngineError."""
    text = structure.text
    if len(text) > MOST_BYTES:
        raise _refused("too long", f"{len(text)} characters", MOST_BYTES)
    if structure.kind in ("regex", "ebnf"):
        _check_groups(text, LONGEST_PATTERN if structure.kind == "regex" else MOST_BYTES)
        return structure
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise _refused("not JSON", str(problem)[:100], "a JSON schema") from None
    if _depth(tree) > MOST_DEPTH:
        raise _refused("nested too deep", f"{_depth(tree)} levels", MOST_DEPTH)
    for schema in _schemas(tree) if structure.kind == "tag" else [tree]:
        _check(schema)
    merged = _in_tag(tree) if structure.kind == "tag" else _merged(tree, tree)
    return Structure(structure.kind, json.dumps(merged, allow_nan=False))


def _refused(what: str, found: object, expected: object) -> EngineError:
    return EngineError(
        f"the schema is {what}", where="response_format", found=found, expected=expected
    )


def _depth(tree: Any) -> int:
    """Levels of nesting, without recursion."""
    deepest, level, here = 0, 1, [tree]
    while here:
        inner = [
            v.values() if isinstance(v, dict) else v for v in here if isinstance(v, (dict, list))
        ]
        here = [item for items in inner for item in items]
        deepest, level = level, level + 1
    return deepest


def _check_groups(pattern: str, longest: int) -> None:
    if len(pattern) > longest:
        raise _refused("too long a pattern", f"{len(pattern)} characters", longest)
    depth = deepest = 0
    for c in re.sub(r"\\.|\"(?:\\.|[^\"\\])*\"", "", pattern):
        depth += (c in "([{") - (c in ")]}")
        deepest = max(deepest, depth)
    if deepest > MOST_GROUPS:
        raise _refused("a pattern of too many nested groups", deepest, MOST_GROUPS)


def _check(schema: Any) -> None:
    for node in _nodes(schema):
        for key in IGNORED_BY_GRAMMARS:
            if node.get(key) not in (None, False, []) and not isinstance(
                node.get("properties"), list
            ):
                raise EngineError(
                    "this keyword of JSON schema cannot be enforced",
                    where="response_format",
                    found=repr(key),
                )
        patterns = [node.get("pattern"), *(node.get("patternProperties") or {})]
        for pattern in patterns:
            if isinstance(pattern, str):
                _check_groups(pattern, LONGEST_PATTERN)


_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_INNER = ("items", "additionalProperties", "propertyNames", "additionalItems")


def _inner(node: Schema) -> Iterator[tuple[str, str | int | None, Any]]:
    """Places of a schema that hold schemas: keyword, name or place there, schema."""
    for key in _MAPS:
        if isinstance(node.get(key), dict):
            yield from ((key, name, inner) for name, inner in node[key].items())
    for key in _LISTS:
        if isinstance(node.get(key), list):
            yield from ((key, i, inner) for i, inner in enumerate(node[key]))
    for key in _INNER:
        if key in node:
            yield key, None, node[key]


def _nodes(schema: Any) -> Iterator[Schema]:
    if isinstance(schema, list):
        for item in schema:
            yield from _nodes(item)
    elif isinstance(schema, dict):
        yield schema
        for _, _, inner in _inner(schema):
            yield from _nodes(inner)


def _schemas(tag: Any) -> Iterator[Any]:
    """The schemas inside a structural tag."""
    for node in tag if isinstance(tag, list) else tag.values() if isinstance(tag, dict) else ():
        yield from _schemas(node)
    if isinstance(tag, dict) and tag.get("type") == "json_schema" and "json_schema" in tag:
        yield tag["json_schema"]
    if isinstance(tag, dict) and tag.get("type") in ("regex", "grammar"):
        _check_groups(str(tag.get("pattern", tag.get("grammar", ""))), LONGEST_PATTERN)


def _in_tag(tag: Any) -> Any:
    if isinstance(tag, list):
        return [_in_tag(node) for node in tag]
    if not isinstance(tag, dict):
        return tag
    if tag.get("type") == "json_schema" and "json_schema" in tag:
        return {**tag, "json_schema": _merged(tag["json_schema"], tag["json_schema"])}
    return {key: _in_tag(node) for key, node in tag.items()}


# --- allOf -------------------------------------------------------------------------------------


def _merged(schema: Any, root: Any, seen: tuple[str, ...] = ()) -> Any:
    """``schema`` with every ``allOf`` inside it written as one schema."""
    if not isinstance(schema, dict):
        return schema
    out = dict(schema)
    if (parts := out.pop("allOf", None)) is not None:
        for part in parts if isinstance(parts, list) else [parts]:
            out = _both(out, _resolved(part, root, seen))
        return _merged(out, root, seen)
    for key, place, inner in _inner(schema):
        found = _merged(inner, root, seen) if isinstance(inner, dict) else inner
        if place is None:
            out[key] = found
        else:
            held = out[key] = type(schema[key])(out[key])
            held[place] = found
    return out


def _resolved(part: Any, root: Any, seen: tuple[str, ...]) -> Any:
    """What a reference inside ``allOf`` stands for, merged itself."""
    if not isinstance(part, dict) or "$ref" not in part:
        return _merged(part, root, seen)
    name = str(part["$ref"])
    if name in seen or not name.startswith("#"):
        raise _refused("not mergeable: allOf refers to itself or elsewhere", name[:100], "#/$defs/")
    found = root
    for step in name.lstrip("#/").split("/") if name != "#" else ():
        found = (
            found.get(step.replace("~1", "/").replace("~0", "~"))
            if isinstance(found, dict)
            else None
        )
    if found is None:
        raise _refused("incomplete: a $ref leads nowhere", name[:100], "a definition")
    rest = {key: value for key, value in part.items() if key != "$ref"}
    return _both(rest, _merged(found, root, (*seen, name)))


def _both(a: Any, b: Any) -> Any:
    """One schema that holds what ``a`` and ``b`` say."""
    if a is True or b is True or a == b:
        return b if a is True else a
    if not isinstance(a, dict) or not isinstance(b, dict):
        return False
    out = dict(a)
    for key, value in b.items():
        out[key] = _one(key, a[key], value) if key in a else value
    return out


def _one(key: str, a: Any, b: Any) -> Any:
    if a == b:
        return a
    if key in _STRICTER:
        return _STRICTER[key](a, b)
    if key in _MAPS and isinstance(a, Mapping) and isinstance(b, Mapping):
        shared = {name: {"allOf": [a[name], b[name]]} for name in a if name in b}
        return {**a, **b, **shared}
    if key == "required":
        return list(dict.fromkeys([*a, *b]))
    if key in ("additionalProperties", "items"):
        return {"allOf": [a, b]} if isinstance(a, dict) and isinstance(b, dict) else a and b
    if key == "enum":
        return [value for value in a if value in b]
    if key == "type" and (types := _types(a, b)):
        return types if len(types) > 1 else types[0]
    if key in ("title", "description", "examples", "default", "$schema", "$id", "$comment"):
        return a
    raise _refused(f"not mergeable: allOf sets {key} twice", repr(b)[:80], repr(a)[:80])


def _types(a: Any, b: Any) -> list[str]:
    left, right = (x if isinstance(x, list) else [x] for x in (a, b))
    both = [t for t in left if t in right]
    if "integer" not in both and "integer" in [*left, *right] and "number" in [*left, *right]:
        both.append("integer")
    return both
