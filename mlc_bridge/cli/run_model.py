"""The two commands that run a model: ``chat`` in a terminal and ``serve`` for other programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlc_bridge.errors import ConfigError

if TYPE_CHECKING:
    from mlc_bridge.engine import EngineConfig

Model = Annotated[str, typer.Argument(help="MLC model directory.", show_default=False)]
Lib = Annotated[str | None, typer.Option(help="Library other than lib.so.")]
Device = Annotated[str, typer.Option(help="Device to run on.")]
Engine = Annotated[str, typer.Option(help="mlc_bridge, or mlc_llm: MLC LLM's own.")]
Threads = Annotated[int | None, typer.Option(help="Threads; default all cores.")]
Json = Annotated[bool, typer.Option("--json", help="JSON lines, for other programs.")]


def chat(
    model: Model,
    prompt: Annotated[str | None, typer.Option(help="Answer this and end.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    model_lib: Lib = None,
    device: Device = "auto",
    engine: Engine = "mlc_bridge",
    threads: Threads = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus of the distribution.")] = None,
    seed: Annotated[int | None, typer.Option(help="For the same answer again.")] = None,
    context_window_size: Annotated[int | None, typer.Option(help="Tokens of the talk.")] = None,
    prefill_chunk_size: Annotated[
        int | None, typer.Option(help="Tokens of the prompt that are computed at once.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Talk to a compiled model. With --prompt it answers once; only the answer goes to stdout."""
    from mlc_bridge.cli.chat import Chat
    from mlc_bridge.engine import EngineConfig

    wishes = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    limits = EngineConfig(
        context_window_size=context_window_size, prefill_chunk_size=prefill_chunk_size
    )
    opened = _open(engine, model, device, model_lib, threads, limits)
    try:
        talk = Chat(opened, {k: v for k, v in wishes.items() if v is not None}, system, as_json)
        if prompt is None:
            talk.talk()
        else:
            talk.say(prompt)
    finally:
        opened.terminate()


def _open(
    engine: str,
    model: str,
    device: str,
    model_lib: str | None,
    threads: int | None,
    limits: EngineConfig,
) -> Any:
    if _is_upstream(engine):
        from mlc_bridge.upstream import open_engine

        return open_engine(model, device, model_lib, limits, threads)
    from mlc_bridge import MLCEngine

    return MLCEngine(
        model,
        device,
        model_lib=model_lib,
        mode="interactive",
        threads=threads,
        engine_config=limits,
    )


def _is_upstream(engine: str) -> bool:
    if engine not in ("mlc_bridge", "mlc_llm"):
        raise ConfigError("unknown engine", found=repr(engine), expected="mlc_bridge or mlc_llm")
    return engine == "mlc_llm"


def _not_theirs(flags: dict[str, Any]) -> None:
    """A wish that MLC's server would pass over in silence, such as a key, is refused."""
    if given := [f"--{name.replace('_', '-')}" for name, value in flags.items() if value]:
        raise ConfigError(
            "MLC LLM's server has no such flag",
            found=", ".join(given),
            todo="Leave it out, or leave out --engine",
        )


def serve(
    model: Model,
    model_lib: Lib = None,
    device: Device = "auto",
    mode: Annotated[str, typer.Option(help="local, interactive or server.")] = "local",
    engine: Engine = "mlc_bridge",
    threads: Threads = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
    served_model_name: Annotated[str | None, typer.Option(help="Name for clients.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse unknown arguments.")] = False,
    api_key: Annotated[str | None, typer.Option(help="Key that clients must send.")] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Host name to answer to; default the loopback names.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="Web origin that may call (CORS); default none.")
    ] = None,
    context_window_size: Annotated[int | None, typer.Option(help="Tokens of a sequence.")] = None,
    max_num_sequence: Annotated[int | None, typer.Option(help="Sequences at once.")] = None,
    max_total_sequence_length: Annotated[
        int | None, typer.Option(help="Tokens of all sequences together (KV pages).")
    ] = None,
    prefill_chunk_size: Annotated[
        int | None, typer.Option(help="Prompt tokens between two tokens of the others.")
    ] = None,
    prefix_cache: Annotated[bool, typer.Option(help="Keep the cache of ended requests.")] = True,
    max_prompt_tokens: Annotated[int | None, typer.Option(help="Longest prompt.")] = None,
    max_answer_tokens: Annotated[int | None, typer.Option(help="Longest answer.")] = None,
    max_body_mb: Annotated[int, typer.Option(help="Largest request, MiB.")] = 8,
    max_requests: Annotated[int, typer.Option(help="Requests at once; further get 429.")] = 256,
    request_seconds: Annotated[float, typer.Option(help="Longest time of an answer.")] = 3600,
    drain_seconds: Annotated[int, typer.Option(help="Time to finish after SIGTERM.")] = 30,
    as_json: Json = False,
) -> None:
    """Serve a compiled model by OpenAI's REST interface. A chat page is at /."""
    from mlc_bridge.engine import EngineConfig

    limits = EngineConfig(
        max_num_sequence=max_num_sequence,
        max_total_sequence_length=max_total_sequence_length,
        context_window_size=context_window_size,
        prefill_chunk_size=prefill_chunk_size,
        prefix_cache=prefix_cache,
    )
    if _is_upstream(engine):
        from mlc_bridge import upstream

        _not_theirs(
            {"served_model_name": served_model_name, "strict": strict, "api_key": api_key,
             "allow_host": allow_host, "max_prompt_tokens": max_prompt_tokens,
             "max_answer_tokens": max_answer_tokens}
        )  # fmt: skip
        return upstream.serve(
            model, device, model_lib, mode, host, port,
            limits=limits, threads=threads, origins=allow_origin or (),
        )  # fmt: skip
    from mlc_bridge.engine import AsyncMLCEngine
    from mlc_bridge.engine.server import Settings
    from mlc_bridge.engine.server import serve as run
    from mlc_bridge.engine.server.settings import LOOPBACK

    local = host in ("127.0.0.1", "localhost", "::1")
    settings = Settings(
        name=served_model_name or Path(model).expanduser().resolve().name,
        strict=strict,
        api_key=api_key,
        hosts=tuple(allow_host) if allow_host else LOOPBACK if local else None,
        origins=tuple(allow_origin or ()),
        max_body=max_body_mb * 2**20,
        max_prompt_tokens=max_prompt_tokens,
        max_answer_tokens=max_answer_tokens,
        max_requests=max_requests,
        request_seconds=request_seconds,
        drain_seconds=drain_seconds,
    )

    def told(event: str, url: str | None = None, **facts: Any) -> None:
        if as_json:
            record = {"event": event, "model": settings.name, "url": url, **facts}
            print(json.dumps({k: v for k, v in record.items() if v is not None}), flush=True)

    def open_engine() -> AsyncMLCEngine:
        asked: Any = mode
        opened = AsyncMLCEngine(
            model, device, model_lib=model_lib, mode=asked, threads=threads, engine_config=limits
        )
        told("ready", device=opened.device, threads=opened.threads, limits=asdict(opened.limits))
        return opened

    listening = partial(told, "listening") if as_json else None
    return run(open_engine, host, port, settings, listening)
