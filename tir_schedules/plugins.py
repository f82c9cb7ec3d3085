"""Rules of other packages: what they publish under the entry-point group `mlc_bridge.schedules`.

    [project.entry-points."mlc_bridge.schedules"]
    ternary = "my_package.rules:RULE"

An entry names one object with the method `apply` of `rule.Rule`. These rules are asked before ours,
in the order in which `importlib.metadata` finds them: a package that brings a kernel for its own
scheme knows more of it than the general rules do.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from .rule import Rule

GROUP = "mlc_bridge.schedules"


def plugin_rules() -> list[Rule]:
    """The rules of the packages installed here. Raises ImportError, naming the entry at fault."""
    return [_load(entry) for entry in entry_points(group=GROUP)]


def _load(entry: EntryPoint) -> Rule:
    try:
        rule = entry.load()
    except (ImportError, AttributeError) as problem:
        raise _unusable(entry, f"cannot be loaded: {problem}") from problem
    if isinstance(rule, type) or not callable(getattr(rule, "apply", None)):
        raise _unusable(entry, "is no rule: an object with the method apply(func, target, tunable)")
    found: Rule = rule
    return found


def _unusable(entry: EntryPoint, why: str) -> ImportError:
    return ImportError(f"the schedule plugin {entry.name} = {entry.value} {why}")
