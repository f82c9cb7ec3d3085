"""Requests in, sequences of the engine's thread out; what both engines share.

``prompts_of`` turns a request into token ids (work: templates, tokenizing), ``start`` hands them to
the engine's thread. Both may be called from any thread.
"""

from __future__ import annotations

import hashlib
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from mlc_bridge.artifact.chat_config import ChatConfig
from mlc_bridge.artifact.chat_template import own_template
from mlc_bridge.artifact.place import model_directory
from mlc_bridge.engine.chat_prompt import ChatPrompt
from mlc_bridge.engine.deltas import AsyncDeltas, Deltas
from mlc_bridge.engine.generation import Generation, PromptReader, Wish
from mlc_bridge.engine.grammar import Grammars, Matcher
from mlc_bridge.engine.loop import Load, Loop
from mlc_bridge.engine.openai.chat import ChatCompletionRequest
from mlc_bridge.engine.openai.completion import CompletionRequest
from mlc_bridge.engine.responses import Frame
from mlc_bridge.engine.runtime import EngineConfig, Mode, Runtime
from mlc_bridge.engine.sampler import Sampling
from mlc_bridge.engine.scheduler import Counts
from mlc_bridge.engine.scheduler import Sequence as Prompt
from mlc_bridge.engine.structure import Structure
from mlc_bridge.engine.tokenizer import Tokenizer
from mlc_bridge.engine.tools.form import structure_of
from mlc_bridge.engine.vocabulary import Vocabulary, check_ids, within
from mlc_bridge.errors import ContextOverflow, EngineError

UNTRACED = (
    "enable_tracing has no effect: MLC LLM records a Chrome trace of its requests; here an "
    "answer's usage, engine.counts and the server's /metrics tell numbers and times"
)
Request = ChatCompletionRequest | CompletionRequest
Reader = TypeVar("Reader", Deltas, AsyncDeltas)


class Frontend:
    """Loads a model directory and its compiled lib; ready when the constructor returns.

    ``model_lib`` None takes ``lib.so`` of the directory; ``device`` "auto" the one that the lib was
    compiled for. ``mode``: "local" serves up to 8 requests at once, "interactive" one, "server" as
    many as the lib allows. ``enable_tracing`` is MLC's and has no effect here. ``threads`` run the
    kernels on a CPU (default: the physical cores).
    Raises ArtifactError, ConfigError or EngineError, naming what does not fit, before anything
    runs.
    """

    def __init__(
        self,
        model: str | Path,
        device: str = "auto",
        *,
        model_lib: str | Path | None = None,
        mode: Mode = "local",
        engine_config: EngineConfig | None = None,
        enable_tracing: bool = False,
        threads: int | None = None,
    ) -> None:
        if enable_tracing:
            warnings.warn(UNTRACED, stacklevel=3)
        directory = model_directory(model)
        self.config = ChatConfig.load(directory)
        self.tokenizer = Tokenizer(directory, self.config.tokenizer_info)
        self.chat_prompt = ChatPrompt(self.config.conv_template, own_template(directory))
        self._vocabulary = self._known_ids()
        runtime = Runtime.open(directory, model_lib, device=device, mode=mode, config=engine_config)
        self.model, self.model_lib = str(model), runtime.library.path
        self.device, self.limits = str(runtime.library.device), runtime.limits
        self.longest_prompt = self.limits.context_window - 1
        self.can_score, self._directory = runtime.can_score, directory
        self._loop = Loop(runtime, threads)
        # Ends the thread when the engine is dropped, and before the interpreter goes away.
        self._end = weakref.finalize(self, self._loop.close)

    @property
    def alive(self) -> bool:
        """False once the engine was terminated or its thread died."""
        return self._loop.alive

    @property
    def threads(self) -> int:
        """Threads that run the kernels, as TVM reports them."""
        return self._loop.threads

    @property
    def load(self) -> Load:
        """What runs and waits now."""
        return self._loop.load

    @property
    def counts(self) -> Counts:
        """What was done since the start, in tokens."""
        return self._loop.counts

    @cached_property
    def fingerprint(self) -> str:
        """Names the weights and the lib: equal seeds repeat answers while it is the same."""
        config = (self._directory / "mlc-chat-config.json").read_bytes()
        lib = self.model_lib.stat()
        return "fp_" + hashlib.sha256(config + f"{lib.st_size}".encode()).hexdigest()[:10]

    def terminate(self) -> None:
        """End the engine and free the model; unfinished requests fail. May be called twice."""
        if "grammars" in self.__dict__:
            self.grammars.close()
        self._end()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.terminate()

    @cached_property
    def grammars(self) -> Grammars:
        size = self._vocabulary.size
        stops = within(self.config.conv_template.stop_token_ids, size)
        return Grammars(self.tokenizer, self._directory, size, stops)

    def prompts_of(self, request: Request) -> list[list[int]]:
        """Token ids of every prompt. Raises EngineError, and ContextOverflow for one that leaves no
        room for an answer."""
        if isinstance(request, ChatCompletionRequest):
            prefix, text = self.chat_prompt.text(request)
            prompts = [[*prefix, *self._encoded(text)]]
        else:
            prompts = [self._encoded(p) if isinstance(p, str) else p for p in request.prompt]
        for tokens in prompts:
            self._check(tokens, request)
        return prompts

    def structure_of(self, request: Request) -> Structure | None:
        """What the answers must follow: the tools of a forced call, or the format asked for."""
        if isinstance(request, ChatCompletionRequest) and request.forced:
            grammar = self.chat_prompt.form.grammar(
                request.callable, parallel=request.parallel_tool_calls
            )
            return structure_of(grammar, self.tokenizer.special_ids)
        return request.structure

    def matchers(self, request: Request, structure: Structure, count: int) -> list[Matcher]:
        """``count`` fresh matchers; waits for the compilation. Raises EngineError."""
        free_end = request.ignores_end or not self.grammars.stops
        return [self.grammars.matcher(structure, free_end=free_end) for _ in range(count)]

    def start(
        self,
        request: Request,
        prompts: Sequence[Sequence[int]],
        matchers: Sequence[Matcher],
        reader: Reader,
    ) -> Reader:
        """Begin the answers; ``reader`` gets their deltas, numbered prompt by prompt."""
        sequences, answers = [], []
        for number, tokens in enumerate(prompts):
            wish = self._wish(request, self._room(tokens))
            drawn = [
                Generation(
                    number * request.drawn + i, wish,
                    None if request.seed is None else request.seed + i,
                    self.tokenizer, self._vocabulary, reader.mailbox,
                    grammar=matchers[number * request.drawn + i] if matchers else None,
                )
                for i in range(request.drawn)
            ]  # fmt: skip
            sequences.append(self._sequence(request, tokens, wish, drawn))
            answers += drawn
        reader.watch(answers)
        for sequence in sequences:
            self._loop.submit(sequence)
        return reader

    def frame(self, request: Request, prompts: Sequence[Sequence[int]]) -> Frame:
        """What the parts of a response to ``request`` share."""
        frame = Frame(
            self.tokenizer,
            model=(request.model or Path(self.model).resolve().name)[:256],
            fingerprint=self.fingerprint,
            prompts=prompts,
            answers=request.drawn,
            shown=request.n,
            logprobs=request.alternatives is not None,
            include_usage=request.include_usage,
        )
        if isinstance(request, CompletionRequest):
            return replace(frame, echo=request.echo)
        return replace(
            frame,
            parser=self.chat_prompt.form.parser if request.offered else None,
            parallel=request.parallel_tool_calls,
            older=bool(request.functions),
        )

    def _known_ids(self) -> Vocabulary:
        """What may be drawn. Raises EngineError for a begin token that the model does not have."""
        template, size = self.config.conv_template, self.config.vocab_size
        check_ids(template.system_prefix_token_ids or (), size, "system_prefix_token_ids")
        return Vocabulary.of(size, (*self.tokenizer.ids, *template.stop_token_ids))

    def _encoded(self, text: str) -> list[int]:
        """A text that cannot fit is refused before the work of tokenizing it."""
        least = len(text) // self.tokenizer.longest
        if least > self.longest_prompt:
            raise self._overflow(f"at least {least} tokens")
        return self.tokenizer.encode(text)

    def _check(self, tokens: Sequence[int], request: Request) -> None:
        if not tokens:
            raise EngineError("the prompt is empty", where="prompt")
        check_ids(tokens, self._vocabulary.size, "the prompt")
        if len(tokens) > self.longest_prompt + (request.most_tokens == 0):
            raise self._overflow(f"{len(tokens)} tokens")

    def _overflow(self, found: str) -> ContextOverflow:
        return ContextOverflow(
            "the prompt leaves no room for an answer",
            found=found,
            expected=f"at most {self.longest_prompt}",
            todo="Shorten the prompt, or compile with a larger --context-window-size",
        )

    def _room(self, tokens: Sequence[int]) -> int:
        return self.limits.context_window - len(tokens)

    def _sequence(
        self, request: Request, tokens: Sequence[int], wish: Wish, drawn: list[Generation]
    ) -> Prompt:
        first, *rest = drawn
        exact = request.seed is not None or not request.cache_prompt
        if wish.prompt_logprobs is None:
            return Prompt(tokens, first, rest, exact=exact, entered=first.entered)
        reader = PromptReader(tokens, wish.prompt_logprobs)
        for answer in drawn:
            answer.read_prompt(reader.entries)
        return Prompt(tokens, first, rest, exact=exact, reader=reader.read)

    def _wish(self, request: Request, room: int) -> Wish:
        template = self.config.conv_template
        echoes = isinstance(request, CompletionRequest) and request.echo
        if echoes and request.alternatives is not None and not self.can_score:
            raise EngineError("this lib gives no log probabilities of a prompt", where="logprobs")
        check_ids(request.stop_token_ids, self._vocabulary.size, "stop_token_ids")
        ends = not request.ignores_end
        asked = request.most_tokens
        return Wish(
            self._sampling(request),
            room if asked is None else min(asked, room),
            min_tokens=request.min_tokens,
            stop_strings=(*request.stop, *(template.stop_str if ends else ())),
            stop_tokens=frozenset(
                (*request.stop_token_ids, *(template.stop_token_ids if ends else ()))
            ),
            prompt_logprobs=request.alternatives if echoes else None,
            streaming=request.stream,
            continues=isinstance(request, CompletionRequest) or request.continue_final_message,
        )

    def _sampling(self, request: Request) -> Sampling:
        def pick(name: str, default: float) -> float:
            asked, model = getattr(request, name), getattr(self.config, name)
            return float(next((v for v in (asked, model) if v is not None), default))

        check_ids(request.logit_bias.keys(), self._vocabulary.size, "logit_bias")
        end = self._vocabulary.end
        compared = request.drawn > request.n  # best_of compares them
        return Sampling(
            temperature=pick("temperature", 1.0),
            top_p=pick("top_p", 1.0),
            top_k=max(request.top_k, 0),
            min_p=request.min_p,
            presence_penalty=pick("presence_penalty", 0.0),
            frequency_penalty=pick("frequency_penalty", 0.0),
            # As in MLC, a model's own default for this one is not applied.
            repetition_penalty=request.repetition_penalty or request.repeat_penalty or 1.0,
            logit_bias={t: b for t, b in request.logit_bias.items() if t < end},
            logprobs=0 if compared and request.alternatives is None else request.alternatives,
        )
