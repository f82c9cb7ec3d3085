"""gen-config against MLC LLM's own output, and what it does with input that is not fine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mlc_bridge import GenConfigJob, gen_config
from mlc_bridge.artifact.chat_config import CONFIG_NAME, ChatConfig
from mlc_bridge.artifact.chat_template import TEMPLATE
from mlc_bridge.artifact.inventory import INVENTORY
from mlc_bridge.errors import ArtifactError, ConfigError, SourceError
from mlc_bridge.models import MODELS
from mlc_bridge.stages.compile import CompileJob, make_plan

TEMPLATES = ("LM", "chatml", "llama-2", "llama-3", "mistral_default", "qwen2")


@pytest.fixture
def model(example_float: Path, tmp_path: Path) -> Path:
    """A copy of the example model's texts, without weights."""
    target = tmp_path / "model"
    target.mkdir()
    for file in example_float.iterdir():
        if file.suffix in (".json", ".jinja"):
            shutil.copy(file, target / file.name)
    return target


def edited(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", TEMPLATES)
def test_equals_mlcs_file(example_float: Path, goldens: Path, tmp_path: Path, name: str) -> None:
    """Key by key, but for the scheme (the golden's is q4f16_1) and our own block."""
    gen_config(GenConfigJob(example_float, tmp_path, "q0f16", name))
    found = json.loads((tmp_path / CONFIG_NAME).read_text())
    expected = json.loads((goldens / f"artifacts/chat_config/{name}.json").read_text())
    assert len(found.pop("mlc_bridge")["fingerprint"]) == 64
    assert found == expected | {"quantization": "q0f16"}


def test_auto_keeps_the_checkpoint_as_it_is(
    example_float: Path, example_awq: Path, tmp_path: Path
) -> None:
    dense = gen_config(GenConfigJob(example_float, tmp_path / "float"))
    assert (dense.config.quantization, dense.source) == ("q0f16", "dense")
    awq = gen_config(GenConfigJob(example_awq, tmp_path / "awq"))
    assert (awq.config.quantization, awq.source) == ("q4f16_autoawq", "autoawq")
    assert awq.prompts_proven_equal > 10
    assert awq.config.conv_template.stop_token_ids == [2]
    assert awq.files == ("tokenizer.json", "tokenizer_config.json")
    assert sorted(p.name for p in (tmp_path / "awq").iterdir()) == sorted(
        (*awq.files, CONFIG_NAME, INVENTORY, TEMPLATE)
    )


def test_sizes_of_the_command_line(model: Path, tmp_path: Path) -> None:
    job = GenConfigJob(
        model,
        tmp_path / "out",
        "q0f16",
        context_window_size=1024,
        prefill_chunk_size=256,
        max_batch_size=3,
    )
    config = gen_config(job).config
    assert (config.context_window_size, config.prefill_chunk_size) == (1024, 256)
    assert config.arch_config["context_window_size"] == 1024
    assert config.arch_config["max_batch_size"] == 3
    again = ChatConfig.load(tmp_path / "out")
    assert again == config


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gemma3_text", "phi3"])
def test_a_window_is_masked_by_the_lib_alone(model: Path, tmp_path: Path, name: str) -> None:
    """MLC's engine rolls its cache where lib or config tell it of a window: garbage on top of ours.

    The graph keeps its window, and the context is the checkpoint's own.
    """
    tied = name.startswith("gemma")
    edited(
        model / "config.json",
        model_type=name,
        sliding_window=48,
        tie_word_embeddings=tied,
        query_pre_attn_scalar=64 if tied else None,
    )
    chat = gen_config(GenConfigJob(model, tmp_path / "out", "q0f16")).config
    assert (chat.sliding_window_size, chat.context_window_size) == (-1, 2048)
    plan = make_plan(CompileJob(tmp_path / "out", device="cpu"))
    assert plan.metadata["sliding_window_size"] == -1
    assert plan.metadata["context_window_size"] == 2048
    assert MODELS[name].decoder(plan.config).layers[0].mixer.window == 48
    if "sliding_window_size" in chat.arch_config:  # phi3's and gemma2's is no limit of MLC's
        wish = GenConfigJob(model, tmp_path / "out", "q0f16", sliding_window_size=32)
        assert gen_config(wish).config.fingerprint == chat.fingerprint
        plan = make_plan(CompileJob(tmp_path / "out", device="cpu"))
        assert MODELS[name].decoder(plan.config).layers[0].mixer.window == 32
        assert plan.metadata["mlc_bridge"]["sliding_window_size"] == 32


def test_a_size_the_architecture_lacks(model: Path, tmp_path: Path) -> None:
    job = GenConfigJob(model, tmp_path / "out", "q0f16", sliding_window_size=64)
    with pytest.raises(ConfigError, match="sliding-window-size"):
        gen_config(job)
    assert not (tmp_path / "out").exists()


def test_generation_values_come_in_mlcs_order(model: Path, tmp_path: Path) -> None:
    edited(model / "generation_config.json", temperature=0.6, eos_token_id=[2, 0])
    edited(model / "config.json", temperature=0.9, top_p=0.8, bos_token_id=1)
    found = gen_config(GenConfigJob(model, tmp_path / "out", "q0f16")).config
    assert (found.temperature, found.top_p, found.repetition_penalty) == (0.6, 0.8, 1.0)
    assert (found.eos_token_id, found.bos_token_id) == ([2, 0], 1)
    assert found.conv_template.stop_token_ids == [2, 0]


def test_active_vocabulary_ends_at_the_highest_id_not_at_the_number_of_tokens(
    model: Path, tmp_path: Path
) -> None:
    """The end token often stands behind a hole; MLC gives probability 0 to what comes after."""
    token = {"id": 4300, "content": "<|eot|>", "special": True, "single_word": False}
    token |= {"lstrip": False, "rstrip": False, "normalized": False}
    found = json.loads((model / "tokenizer.json").read_text())
    found["model"]["vocab"]["<|eot|>"] = 4300
    found["added_tokens"].append(token)
    edited(model / "tokenizer.json", **found)

    def active(**config: Any) -> int | None:
        edited(model / "config.json", **config)
        return gen_config(GenConfigJob(model, tmp_path / "out", "q0f32")).config.active_vocab_size

    assert active(vocab_size=4352) == 4301
    assert active(vocab_size=4300) == 4096  # one that the model cannot give counts for nothing
    assert active(vocab_size=4352, eos_token_id=4310) == 4311  # an end token without a text


def test_fingerprint_follows_the_graph_not_the_limits(model: Path, tmp_path: Path) -> None:
    def stamp(**changes: Any) -> str | None:
        job = GenConfigJob(model, tmp_path / "out", **({"quantization": "q0f16"} | changes))
        return gen_config(job).config.fingerprint

    assert stamp() == stamp(context_window_size=512, max_batch_size=1)
    assert stamp() != stamp(quantization="q0f32")


def test_no_chat_template_names_the_way_out(model: Path, tmp_path: Path) -> None:
    (model / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="--conv-template; LM"):
        gen_config(GenConfigJob(model, tmp_path / "out", "q0f16"))
    report = gen_config(GenConfigJob(model, tmp_path / "out", "q0f16", "LM"))
    assert report.prompts_proven_equal == 0


def test_wrong_stop_tokens_of_a_named_template_are_noted(model: Path, tmp_path: Path) -> None:
    edited(model / "generation_config.json", eos_token_id=3)
    report = gen_config(GenConfigJob(model, tmp_path / "out", "q0f16", "deepseek_v3"))
    assert any("[3]" in note for note in report.notes)


def test_end_of_turn_as_plain_text_becomes_a_stop_string(model: Path, tmp_path: Path) -> None:
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }} ###\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    report = gen_config(GenConfigJob(model, tmp_path / "out", "q0f16"))
    assert report.config.conv_template.stop_str == ["###"]


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"model_type": "nonesuch"}, ConfigError, "nonesuch.*llama"),
        ({"model_type": None}, ConfigError, "no model_type"),
        ({"hidden_size": "big"}, ConfigError, "hidden_size"),
    ],
)
def test_bad_config(
    model: Path, tmp_path: Path, change: dict[str, Any], error: type[Exception], text: str
) -> None:
    edited(model / "config.json", **change)
    with pytest.raises(error, match=text):
        gen_config(GenConfigJob(model, tmp_path / "out", "q0f16"))
    assert not (tmp_path / "out").exists()


def test_what_is_no_model(tmp_path: Path, model: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        gen_config(GenConfigJob(tmp_path / "nothing here", tmp_path / "out"))
    (model / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"config\.json"):
        gen_config(GenConfigJob(model, tmp_path / "out", "q0f16"))


def test_no_weights_to_choose_from(model: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="--quantization"):
        gen_config(GenConfigJob(model, tmp_path / "out"))


def test_unknown_names_answer_with_the_list(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="q4f16_autoawq"):
        gen_config(GenConfigJob(model, tmp_path / "out", "q5"))
    with pytest.raises(ConfigError, match="chatml"):
        gen_config(GenConfigJob(model, tmp_path / "out", "q0f16", "chat-ml"))


def test_the_checkpoint_is_never_the_output(model: Path) -> None:
    before = {p.name: p.read_bytes() for p in model.iterdir()}
    with pytest.raises(ArtifactError, match="never modified"):
        gen_config(GenConfigJob(model, model, "q0f16"))
    assert {p.name: p.read_bytes() for p in model.iterdir()} == before


def test_an_output_that_cannot_be_written(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ArtifactError, match="cannot be written"):
        gen_config(GenConfigJob(model, tmp_path / "file" / "out", "q0f16"))
    assert (tmp_path / "file").read_text() == "mine"


def test_failure_while_writing_leaves_only_what_was_there(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "mine.txt").write_text("keep")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ChatConfig, "save", full)
    with pytest.raises(ArtifactError, match="No space left"):
        gen_config(GenConfigJob(model, output, "q0f16"))
    assert [p.name for p in output.iterdir()] == ["mine.txt"]
