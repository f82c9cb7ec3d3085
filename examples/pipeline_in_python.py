"""A deployment's own pipeline around ``build``: plan, refuse, build, cancel, go on, record.

    python examples/pipeline_in_python.py examples/models/stdlib-llama-7m-awq dist/pipeline

Jobs and reports are plain frozen data that goes through JSON, errors are one tree, progress is any
callable, and what it raises ends the stage with nothing half-written. ``mypy --strict`` passes.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from mlc_bridge import (
    BridgeError,
    BuildJob,
    BuildPlan,
    BuildReport,
    CheckJob,
    MLCEngine,
    build,
    check_artifact,
    plan,
)


class Cancelled(Exception):
    """Somebody pressed the button."""


class Deadline:
    """Progress that a scheduler may watch; ``cancel_at`` is the step at which it gives up."""

    def __init__(self, cancel_at: str | None = None) -> None:
        self.cancel_at = cancel_at
        self.steps: list[str] = []

    def __call__(self, label: str, done: int, total: int) -> None:
        if not self.steps or self.steps[-1] != label:
            self.steps.append(label)
        if label == self.cancel_at:
            raise Cancelled(f"{label} at {done} of {total}")


def fits(found: BuildPlan, limit: int) -> bool:
    """Whether the model may be built here: disk, memory, and the fleet's own limit in bytes."""
    return found.disk <= found.disk_free and found.memory <= limit


def run(job: BuildJob, limit: int, record: Path) -> BuildReport | None:
    """One build; its report is kept beside the artifact. None when it was refused."""
    try:
        found = plan(job)
    except BridgeError as error:
        logging.error("refused: %s", error)
        return None
    if not fits(found, limit):
        logging.error("refused: needs %.2f GB", found.memory / 1e9)
        return None
    try:
        report = build(job, Deadline(cancel_at="convert"))
    except Cancelled as reason:
        logging.warning("cancelled: %s", reason)
        report = build(job, Deadline())  # goes on where it stopped
    record.write_text(report.to_json())
    return BuildReport.from_json(record.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description="Plan, build and check with the Python API.")
    parser.add_argument("model_dir", help="checkpoint directory or hub id")
    parser.add_argument("output", type=Path, help="MLC directory to write")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s")

    job = BuildJob.from_json(BuildJob(args.model_dir, str(args.output)).to_json())
    report = run(job, limit=64 * 10**9, record=Path(f"{args.output}.json"))
    if report is None:
        raise SystemExit(2)
    print("library", report.compile.path, report.compile.path.stat().st_size, "bytes")
    checked = check_artifact(CheckJob(report.output))
    print("checks", "passed" if checked.passed else "FAILED")

    with MLCEngine(report.output) as engine:
        answer = engine.chat.completions.create(
            messages=[{"role": "user", "content": "Close the file."}], max_tokens=8, temperature=0.0
        )
        print("answer", answer.choices[0].message.content)


if __name__ == "__main__":
    main()
