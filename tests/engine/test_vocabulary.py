"""Ids without a token are never drawn, and ids without a row of the embedding never looked up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlc_bridge import CheckJob, MLCEngine, check_artifact
from mlc_bridge.engine.runtime import Runtime
from mlc_bridge.engine.vocabulary import Vocabulary, check_ids
from mlc_bridge.errors import EngineError
from tests.engine.test_preflight import edit_json

Copy = Callable[[], Path]
VOCAB = 4096  # of the example model; every id of it is a token
GREEDY = {"max_tokens": 4, "temperature": 0.0, "debug_config": {"ignore_eos": True}}


def test_padding_and_holes() -> None:
    found = Vocabulary.of(8, [0, 1, 4, 5, 9])
    assert found.end == 6
    assert found.known.tolist() == [True, True, False, False, True, True]
    grammar = np.array([1, 0, 1, 0, 1, 0, 1, 1], bool)
    assert np.flatnonzero(found.allowed(grammar)).tolist() == [0, 4]
    assert found.allowed(None) is found.known


def test_without_holes_nothing_is_masked() -> None:
    found = Vocabulary.of(8, range(6))
    assert (found.end, found.known, found.allowed(None)) == (6, None, None)
    assert found.allowed(np.ones(8, bool)).shape == (6,)
    assert Vocabulary.of(8, []).end == 8


@pytest.mark.parametrize("bad", [8, -1, 10**8, 10**12])
def test_ids_out_of_range_are_named(bad: int) -> None:
    check_ids([0, 7], 8, "the prompt")
    check_ids([], 8, "the prompt")
    with pytest.raises(EngineError, match=f"the prompt.*found {bad}, expected 0 to 7"):
        check_ids([1, bad, 2], 8, "the prompt")


def added(directory: Path, text: str, number: int) -> None:
    token = {"id": number, "content": text, "special": True, "single_word": False}
    token |= {"lstrip": False, "rstrip": False, "normalized": False}
    edit_json(directory / "tokenizer.json", lambda t: t["added_tokens"].append(token))


@pytest.mark.slow
def test_a_token_beyond_the_model_is_refused_before_the_kernels(copy_of: Copy) -> None:
    """As gemma-3-1b's <image_soft_token>, whose id is the vocabulary's size."""
    directory = copy_of()
    added(directory, "<image>", VOCAB)
    with MLCEngine(directory) as engine:
        with pytest.raises(EngineError, match=r"found 4096, expected 0 to 4095"):
            engine.completions.create(prompt="a <image> b", **GREEDY)
        answer = engine.completions.create(prompt="import os", logprobs=1, **GREEDY)
        assert answer.usage.completion_tokens == 4
    said = {check.name: check for check in check_artifact(CheckJob(directory)).checks}["tokenizer"]
    assert said.passed
    assert "1 beyond it ('<image>' is 4096)" in said.detail


@pytest.mark.slow
def test_another_models_tokenizer_is_no_extra_token(copy_of: Copy) -> None:
    directory = copy_of()
    edit_json(directory / "tokenizer.json", lambda t: t["model"]["vocab"].update(word=VOCAB))
    said = {check.name: check for check in check_artifact(CheckJob(directory)).checks}["tokenizer"]
    assert not said.passed
    assert "'word' is 4096" in said.detail


@pytest.mark.slow
@pytest.mark.parametrize("bad", [VOCAB, 10**8, 10**12, -1])
def test_special_ids_of_the_config(copy_of: Copy, bad: int) -> None:
    directory = copy_of()

    def spoil(config: dict[str, Any]) -> None:
        config["conv_template"]["stop_token_ids"].append(bad)  # it never comes: harmless

    edit_json(directory / "mlc-chat-config.json", spoil)
    with MLCEngine(directory) as engine:
        wish = {"response_format": {"type": "json_object"}, "max_tokens": 3}
        engine.chat.completions.create(messages=[{"role": "user", "content": "x"}], **wish)
    edit_json(
        directory / "mlc-chat-config.json",
        lambda config: config["conv_template"].update(system_prefix_token_ids=[1, bad]),
    )
    with pytest.raises(EngineError, match=f"system_prefix_token_ids.*found {bad}"):
        MLCEngine(directory)


@pytest.mark.slow
def test_the_runtime_itself_looks_nothing_up_beyond_the_embedding(artifact: Path) -> None:
    runtime = Runtime.open(artifact, mode="interactive")
    runtime.add(0)
    for call in (
        lambda: runtime.prefill([0], [[1, VOCAB]]),
        lambda: runtime.decode([0], [-1]),
        lambda: runtime.score(0, [10**10]),
    ):
        with pytest.raises(EngineError, match="an id that the model does not have"):
            call()


@pytest.mark.slow
def test_ids_without_a_token_are_never_drawn(copy_of: Copy) -> None:
    """Two tokens taken out: one in the middle, one at the end; a bias of 100 cannot bring them."""
    directory = copy_of()
    text = json.loads((directory / "tokenizer.json").read_text())
    tokens = {i: t for t, i in text["model"]["vocab"].items()}
    gone = (VOCAB - 100, VOCAB - 1)
    whole = {tokens[i] for i in gone}

    def without(t: dict[str, Any]) -> None:
        for token in whole:
            del t["model"]["vocab"][token]
        merged = [m if isinstance(m, list) else m.split(" ") for m in t["model"]["merges"]]
        t["model"]["merges"] = [m for m in merged if not whole & {*m, "".join(m)}]

    edit_json(directory / "tokenizer.json", without)
    with MLCEngine(directory) as engine:
        for number, drawn in ((gone[0], False), (gone[1], False), (VOCAB - 2, True)):
            wish = {"logit_bias": {number: 100}, "logprobs": 1, **GREEDY}
            answer = engine.completions.create(prompt="import os", **wish)
            pieces = {*answer.choices[0].logprobs.tokens}
            assert (pieces == {engine.tokenizer.bytes_of(number).decode()}) is drawn
            assert "" not in pieces
