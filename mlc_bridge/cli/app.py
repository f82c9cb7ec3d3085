"""The commands; each turns flags into a Job, runs the stage and prints its Report."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass, replace
from typing import Annotated, Any

import typer

from mlc_bridge import __version__
from mlc_bridge.cli import reports, run_model, show
from mlc_bridge.cli.exits import TRACEBACK, guarded, show_tracebacks
from mlc_bridge.cli.flags import job_command
from mlc_bridge.cli.progress import Bars
from mlc_bridge.cli.spelling import Commands, JobCommand
from mlc_bridge.errors import ConfigError, NotVerified
from mlc_bridge.record import Record
from mlc_bridge.stages.bench import BenchJob, bench
from mlc_bridge.stages.build import BuildJob, build, by_backend, plan, verdict
from mlc_bridge.stages.build_plan import BuildPlan
from mlc_bridge.stages.calibrate import CalibrateJob, calibrate
from mlc_bridge.stages.compile import CompileJob, compile_model
from mlc_bridge.stages.convert_weight import ConvertJob, convert_weight
from mlc_bridge.stages.doctor import examine
from mlc_bridge.stages.gen_config import GenConfigJob, gen_config
from mlc_bridge.stages.inspect_artifact import (
    ArtifactReport,
    CheckJob,
    check_artifact,
    inspect_artifact,
    is_artifact,
)
from mlc_bridge.stages.inspect_checkpoint import (
    CheckpointReport,
    InspectJob,
    inspect_checkpoint,
)
from mlc_bridge.stages.model_type import check_model_type
from mlc_bridge.stages.quantize import OPTION_HELP, QuantizeJob, quantize
from mlc_bridge.stages.upload import UploadJob, upload
from mlc_bridge.stages.verify import VerifyJob, VerifyReport, verify

app = typer.Typer(
    name="mlc-bridge",
    cls=Commands,
    help="From any quantized Hugging Face checkpoint to a compiled MLC LLM model that answers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 120},
)


def run() -> None:
    """Run the command line of this process."""
    if TRACEBACK in sys.argv:
        sys.argv.remove(TRACEBACK)
        show_tracebacks()
    app()


def _version(asked: bool) -> None:
    if asked:
        print(f"mlc-bridge {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Every command takes --traceback, which shows where an error came from."""


BACKEND = {"backend": "embedded, or mlc_llm: MLC LLM's own tools. [default: embedded]"}
MODEL_TYPE = {"model_type": "Architecture; it must be the one of config.json."}
RECIPE = {
    "config": "Recipe with these flags as YAML keys (configs/deploy); flags win over it.",
    **MODEL_TYPE,
}


def _command(
    name: str,
    job: type,
    run: Callable[[dict[str, Any], bool], None],
    doc: str,
    more: Mapping[str, str] | None = None,
    switches: Mapping[str, str] | None = None,
) -> None:
    app.command(name, cls=JobCommand)(guarded(job_command(job, run, doc, more, switches)))


def _stage(
    name: str,
    job: type,
    stage: Callable[..., Any],
    doc: str,
    details: Mapping[str, tuple[str, Callable[[Any], None]]] | None = None,
) -> None:
    """Register a command that runs one stage and prints its report.

    ``details``: further switches, with their help and what they print.
    """
    details = details or {}

    def call(given: dict[str, Any], as_json: bool) -> None:
        chosen = by_backend(given.pop("backend", None), stage)
        check_model_type(given["model_dir"], given.pop("model_type", "auto"))
        wanted = [tell for switch, (_, tell) in details.items() if given.pop(switch)]
        with Bars() as progress:
            found = chosen(job(**given), progress)
        if as_json:
            show.as_json(found)
        else:
            SHOW.get(name, show.report)(f"{name}: done", found)
            for tell in wanted:
                tell(found)

    helps = {switch: text for switch, (text, _) in details.items()}
    _command(name, job, call, doc, {**BACKEND, **MODEL_TYPE}, helps)


def _stage_of_ours(name: str, job: type, stage: Callable[..., Any], doc: str) -> None:
    """The same for a stage that MLC LLM does not have."""

    def call(given: dict[str, Any], as_json: bool) -> None:
        with Bars() as progress:
            found = stage(job(**given), progress)
        show.as_json(found) if as_json else show.report(f"{name}: done", found)

    _command(name, job, call, doc)


SHOW: dict[str, Callable[[str, Any], None]] = {
    "gen-config": reports.config,
    "convert": reports.conversion,
    "calibrate": reports.calibration,
}

_stage(
    "gen-config",
    GenConfigJob,
    gen_config,
    "Write mlc-chat-config.json and the tokenizer files.",
)
_stage(
    "convert",
    ConvertJob,
    convert_weight,
    "Convert the weights; works on a checkpoint directory alone.",
)
_stage(
    "compile",
    CompileJob,
    compile_model,
    "Compile the model of an MLC directory to lib.so.",
    {
        "explain": (
            "Tell which kernel computes which layer, and why no better one.",
            reports.kernels,
        )
    },
)
_stage(
    "calibrate",
    CalibrateJob,
    calibrate,
    "Measure the activation scales of an FP8 model. Writes a new directory.",
)


def _build(given: dict[str, Any], as_json: bool) -> None:
    wanted, dry_run = given.pop("model_type", "auto"), given.pop("dry_run")
    job = BuildJob.from_recipe(given.pop("config", None), **given)
    check_model_type(job.model_dir, wanted)
    if dry_run:
        with Bars() as progress:
            told = plan(job, progress)
        show.as_json(told) if as_json else reports.dry_run(told)
        return
    with Bars() as progress:

        def announce(told: BuildPlan) -> None:
            progress.pause()
            reports.plan(told)

        found = build(job, progress, **({} if as_json else {"announce": announce}))
    show.as_json(found) if as_json else reports.build(found)


_command(
    "build",
    BuildJob,
    _build,
    "gen-config, convert and compile in one go.",
    RECIPE,
    {"dry_run": "Print the plan: schemes, sizes, memory, disk, time; write nothing."},
)
app.command("chat", cls=JobCommand)(guarded(run_model.chat))
app.command("serve", cls=JobCommand)(guarded(run_model.serve))


@app.command("inspect", cls=JobCommand)
@guarded
def _inspect(
    path: Annotated[str, typer.Argument(help="Checkpoint, hub id, or MLC directory.")],
    source_format: Annotated[str, typer.Option(help="Source format of a checkpoint.")] = "auto",
    samples_only: Annotated[
        bool, typer.Option("--samples-only", help="Read one layer of every kind.")
    ] = False,
    load_lib: Annotated[
        bool, typer.Option("--load-lib", help="Ask an MLC directory's lib, which runs its code.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="What speaks for and against each source format.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For other programs.")] = False,
) -> None:
    """Say what a checkpoint or an MLC directory holds. Changes nothing."""
    from mlc_bridge.cli import show_inspection as shown

    found: ArtifactReport | CheckpointReport
    if is_artifact(path):
        found = inspect_artifact(path, load_lib=load_lib)
    else:
        with Bars() as progress:
            found = inspect_checkpoint(InspectJob(path, source_format, samples_only), progress)
            found = replace(found, verdict=verdict(path, source_format))
    if as_json:
        show.as_json(found)
    elif isinstance(found, ArtifactReport):
        shown.artifact(found)
    else:
        shown.checkpoint(found, verbose=verbose)


THEIR_PLACES = {"model_dir": "model_path", "output": "save_directory"}


def _quantize(given: dict[str, Any], as_json: bool) -> None:
    options = {name: given.pop(name) for name in OPTION_HELP if name in given}
    for ours, theirs in THEIR_PLACES.items():
        given.setdefault(ours, given.pop(theirs, None))
        if given[ours] is None:
            raise ConfigError("missing", where=f"quantize: {ours}", todo="Give MODEL_DIR and -o")
    with Bars() as progress:
        found = quantize(QuantizeJob(**given, options=options), progress)
    show.as_json(found) if as_json else reports.quantization(found)


def _check(given: dict[str, Any], as_json: bool) -> None:
    with Bars() as progress:
        found = check_artifact(CheckJob(**given), progress)
    show.as_json(found) if as_json else reports.checks(found)
    if not found.passed:
        raise SystemExit(2)


def _verify(given: dict[str, Any], as_json: bool) -> None:
    job = VerifyJob(**given)
    with Bars() as progress:
        found = verify(job, progress)
    show.as_json(found) if as_json else reports.verification(found)
    if not found.passed:
        other = "the checkpoint" if job.against is None else str(job.against)
        raise NotVerified(
            f"the model does not say what {other} says",
            where=job.model_dir,
            found="; ".join(found.failures),
            todo=_advice(found),
        )


def _advice(found: VerifyReport) -> str:
    if not found.weights.passed:
        return "Convert again from this checkpoint; check tells whether files are damaged"
    if not found.depths:
        return "The weights are right; --trace names the layer where the two part"
    return "The weights are right, so look at config and library: build again"


def _bench(given: dict[str, Any], as_json: bool) -> None:
    with Bars() as progress:
        found = bench(BenchJob(**given), progress)
    show.as_json(found) if as_json else reports.speeds(found)


_command(
    "quantize",
    QuantizeJob,
    _quantize,
    "Quantize a float checkpoint by a recipe; writes a checkpoint.",
    {
        "model_path": "msModelSlim's word for MODEL_DIR.",
        "save_directory": "Its word for -o.",
        **OPTION_HELP,
    },
)
_command("check", CheckJob, _check, "Check an MLC directory before an engine starts.")
_stage_of_ours("upload", UploadJob, upload, "Upload an MLC directory to the Hugging Face hub.")
_command("verify", VerifyJob, _verify, "Compare a compiled model with its checkpoint.")
_command("bench", BenchJob, _bench, "Measure a compiled model's speed.")


@app.command("doctor", cls=JobCommand)
@guarded
def _doctor(
    as_json: Annotated[bool, typer.Option("--json", help="For other programs.")] = False,
) -> None:
    """Say what is installed, what works, and what to install."""
    found = examine()
    if as_json:
        show.as_json(found)
        return
    reports.diagnosis(found)


@app.command("schema", cls=JobCommand)
@guarded
def _schema(
    name: Annotated[
        str | None, typer.Argument(help="A job or report: BuildJob, BuildReport ...")
    ] = None,
) -> None:
    """Print the JSON Schema of a job or report. Without a name it lists them."""
    import mlc_bridge

    kinds = {
        word: kind
        for word in mlc_bridge.__all__
        if isinstance(kind := getattr(mlc_bridge, word), type)
        and is_dataclass(kind)
        and issubclass(kind, Record)
    }
    if name is None:
        show.as_json(sorted(kinds))
    elif name not in kinds:
        raise ConfigError("no such job or report", found=name, expected=", ".join(sorted(kinds)))
    else:
        show.as_json(kinds[name].json_schema())
