"""Lib and weights of different builds are told apart, by the first difference."""

import json

import numpy as np
import pytest

from mlc_bridge.artifact.chat_config import CONFIG_NAME
from mlc_bridge.artifact.manifest import check_lib, fingerprint
from mlc_bridge.artifact.tensor_cache import ShardWriter
from mlc_bridge.errors import ArtifactError

CONFIG = {"hidden_size": 8, "context_window_size": 2048, "vocab_size": 5}
PARAMS = [("a.weight", (2, 3), "float16"), ("b.weight", (4,), "uint32")]


@pytest.fixture
def weights(tmp_path):
    def make(**stamp):
        with ShardWriter(tmp_path, stamp) as writer:
            for name, shape, dtype in PARAMS:
                writer.add(name, np.zeros(shape, dtype))
        return tmp_path

    return make


def metadata(params=PARAMS, **more):
    return {"params": [{"name": n, "shape": list(s), "dtype": d} for n, s, d in params], **more}


def stamp(value):
    return {"mlc_bridge": {"version": "1", "fingerprint": value}}


def test_fingerprint_sees_the_graph_and_not_the_limits():
    one = fingerprint("llama", CONFIG, PARAMS)
    assert one == fingerprint("llama", {**CONFIG, "context_window_size": 1}, reversed(PARAMS))
    inner = {**CONFIG, "text_config": {"hidden_size": 8, "context_window_size": 2048}}
    shorter = {**inner, "text_config": {"hidden_size": 8, "context_window_size": 1}}
    assert fingerprint("gemma3_text", inner, PARAMS) == fingerprint("gemma3_text", shorter, PARAMS)
    assert fingerprint("gemma3_text", inner, PARAMS) != fingerprint("gemma3_text", CONFIG, PARAMS)
    assert one == fingerprint(
        "llama", CONFIG, [*PARAMS, ("a.q_calibration_scale", (1,), "float32")]
    )
    others = {
        fingerprint("qwen2", CONFIG, PARAMS),
        fingerprint("llama", {**CONFIG, "hidden_size": 9}, PARAMS),
        fingerprint("llama", CONFIG, PARAMS[:1]),
        fingerprint("llama", CONFIG, [("a.weight", (3, 2), "float16"), PARAMS[1]]),
        fingerprint("llama", CONFIG, [("a.weight", (2, 3), "float32"), PARAMS[1]]),
    }
    assert len(others | {one}) == 6
    assert len(one) == 64


def test_agreement_with_and_without_a_stamp(weights):
    check_lib(metadata(), weights())
    check_lib(metadata(**stamp("abc")), weights())
    check_lib(metadata(), weights(**stamp("abc")))
    check_lib(metadata(**stamp("abc")), weights(**stamp("abc")))


def test_a_symbolic_dimension_takes_any_length(weights):
    check_lib(metadata([("a.weight", ("vocab_size", 3), "float16")]), weights())


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ([("a.weight", (2, 4), "float16")], r"a.weight.*found \[2, 3\] float16, expected \[2, 4\]"),
        ([("a.weight", (2, 3, 1), "float16")], "a.weight"),
        ([("b.weight", (4,), "float16")], r"b.weight.*uint32.*float16"),
        ([("c.weight", (1,), "float16")], "c.weight.*no such parameter"),
    ],
)
def test_the_first_difference_is_named(weights, params, said):
    with pytest.raises(ArtifactError, match=said):
        check_lib(metadata(params), weights())


def test_equal_shapes_of_another_build_are_refused(weights):
    with pytest.raises(ArtifactError, match="different builds"):
        check_lib(metadata(**stamp("abc")), weights(**stamp("xyz")))


def test_a_lib_that_computes_with_another_window_is_refused(weights, goldens):
    """The weights were converted before a window was chosen: the fingerprint says nothing of it."""
    directory = weights(**stamp("abc"))
    chat = json.loads((goldens / "artifacts/chat_config/LM.json").read_text())
    lib = metadata(mlc_bridge={"fingerprint": "abc", "sliding_window_size": 48})
    for window in (48, None, 32, -1):
        chat["model_config"]["sliding_window_size"] = window
        (directory / CONFIG_NAME).write_text(json.dumps(chat))
        check_lib(metadata(**stamp("abc")), directory)
        if window in (48, None):
            check_lib(lib, directory)
        else:
            with pytest.raises(ArtifactError, match=rf"window.*found {window}, expected 48"):
                check_lib(lib, directory)
