"""The command line: ``mlc-bridge COMMAND``, MLC LLM's flag names, one command per stage.

Flags come from the fields of each stage's Job. Answers and reports go to stdout, progress and
errors to stderr. Exit codes: 0 fine, 2 for bad input (one paragraph: what, where, found, expected,
what to do), 3 from ``verify`` for a model that does not pass, 1 for anything unexpected, 130 for
Ctrl-C, 143 for SIGTERM.
"""

from __future__ import annotations


def main() -> None:
    """Entry point of ``mlc-bridge`` and ``python -m mlc_bridge``."""
    from mlc_bridge.cli.exits import guarded

    guarded(_run)()  # importing can fail too: a broken plugin, say


def _run() -> None:
    from mlc_bridge.cli.app import run

    run()
