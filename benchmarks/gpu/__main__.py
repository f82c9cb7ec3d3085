"""Kernels compiled here, measured on a GPU machine, and the choice between their variants.

    python -m benchmarks.gpu pack DIR [--suite 7b] [--target sm_90a] [--model NAME=DIR ...]
    python -m benchmarks.gpu run [DIR] [--minutes 5] [--only TEXT]      (there: `sh DIR/run`)
    python -m benchmarks.gpu adopt measured.json

`pack` cross-compiles every case of a suite in every variant and puts it into one folder with all
that a machine needs that has Python 3.12, transformers and a driver, but no compiler and no
network: the runtime half of tvm, pydantic and the like, this project. `run` checks each variant
against float64, measures it and writes `measured.json` after every case, so that a machine that is
taken away has lost nothing. `adopt` writes the fastest right variants to the table that the rules
read, `tir_schedules/gpu/choices.json`. `--target llvm` goes the same way on a CPU.

Printed beside each time: what was predicted (bytes, blocks, waves on 132 multiprocessors, KiB under
way on each), so that the first run confirms or refutes it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.gpu.cases import SUITES


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    commands = parser.add_subparsers(required=True, dest="command")
    pack = commands.add_parser("pack", help="cross-compile into a folder")
    pack.add_argument("folder", type=Path)
    pack.add_argument("--suite", choices=SUITES, default="7b")
    pack.add_argument("--target", action="append", help="sm_90a unless given; may be repeated")
    pack.add_argument("--only", default="", help="cases whose name contains this")
    pack.add_argument("--model", action="append", default=[], help="NAME=artifact directory")
    pack.add_argument("--bare", action="store_true", help="no interpreter packages")
    run = commands.add_parser("run", help="measure what a folder holds")
    run.add_argument("folder", type=Path, nargs="?", default=Path("."))
    run.add_argument("--minutes", type=float, default=5.0)
    run.add_argument("--only", default="")
    adopt = commands.add_parser("adopt", help="write the rules' table of choices")
    adopt.add_argument("measured", type=Path)
    adopt.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    if options.command == "pack":
        from benchmarks.gpu.pack import pack_folder

        pack_folder(options)
    elif options.command == "run":
        from benchmarks.gpu.measure import run_folder

        sys.exit(run_folder(options.folder, options.minutes, options.only))
    else:
        from benchmarks.gpu.adopt import adopt_file

        adopt_file(options.measured, options.output)


if __name__ == "__main__":
    main()
