"""Calibration data: every record shape becomes the same chat; what cannot be read is named."""

import json
from pathlib import Path

import pytest

from mlc_bridge.artifact.conversation import template
from mlc_bridge.errors import ConfigError
from mlc_bridge.stages.calibration_data import Record, draw, read_records, tokenize

GOLDEN = Path(__file__).parents[1] / "golden" / "fp8"
CHAT = (("user", "What is 1 + 1?"), ("assistant", "Two."))
CHATML = template("chatml")


def encode(text):
    return list(text.encode())


def written(tmp_path, text):
    path = tmp_path / "data"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "item",
    [
        {
            "conversations": [
                {"from": "human", "value": CHAT[0][1]},
                {"from": "gpt", "value": "Two."},
            ]
        },
        {"messages": [{"role": r, "content": c} for r, c in CHAT]},
        {"messages": [{"role": r, "content": [{"type": "text", "text": c}]} for r, c in CHAT]},
        {"prompt": CHAT[0][1], "response": "Two."},
        {"prompt": CHAT[0][1], "completion": "Two."},
    ],
)
def test_one_chat_in_every_shape(tmp_path, item):
    assert read_records(written(tmp_path, json.dumps([item, item]))) == [Record(turns=CHAT)] * 2
    lines = f"{json.dumps(item)}\n\n{json.dumps(item)}\n"
    assert read_records(written(tmp_path, lines)) == [Record(turns=CHAT)] * 2


@pytest.mark.parametrize(
    "text",
    [
        '{"inputs_pretokenized": "one"}\n{"inputs_pretokenized": "two"}',
        '["one", "two"]',
        '[["one"], ["two"]]',
        '[{"text": "one"}, {"inputs_pretokenized": "two"}]',
    ],
)
def test_texts_as_msmodelslim_gives_them(tmp_path, text):
    assert read_records(written(tmp_path, text)) == [Record(text="one"), Record(text="two")]


def test_plain_text_is_cut_at_line_ends(tmp_path):
    text = "".join(f"line {i} of a text\n" for i in range(2000))
    pieces = [r.text for r in read_records(written(tmp_path, text))]
    assert "".join(pieces) == text
    assert len(pieces) > 1
    assert all(p.endswith("\n") and len(p) <= 8000 for p in pieces)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no text"),
        ("[1]", "item 0.*found 1"),
        ('[{"question": "x"}]', "keys question.*expected conversations, messages, prompt or text"),
        ('{"text": "a"}\n{"text": \n', "data:2.*JSON"),
        ('[{"messages": [{"role": "clown", "content": "x"}]}]', "clown"),
        ('[{"messages": ["hello"]}]', "role and content"),
    ],
)
def test_bad_data_is_named(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        read_records(written(tmp_path, text))


def test_missing_and_binary_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.json"):
        read_records(tmp_path / "absent.json")
    (tmp_path / "data").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_records(tmp_path / "data")


def test_the_seed_decides_the_draw():
    records = read_records(GOLDEN / "calibration_sharegpt.json")
    assert draw(records, 8, 3) == draw(records, 8, 3) != draw(records, 8, 4)
    assert len({id(r) for r in draw(records, 8, 3)}) == 8
    assert draw(records, 1000, 3) == records


def test_a_chat_passes_through_the_template():
    sample = tokenize(Record(turns=CHAT), CHATML, encode, 10_000)
    text = bytes(sample.ids).decode()
    assert text == CHATML.prompt(
        [{"role": r, "content": c} for r, c in CHAT], add_generation_prompt=False
    )
    assert bytes(sample.prompt).decode() == CHATML.prompt([{"role": "user", "content": CHAT[0][1]}])
    assert text.endswith("Two.<|im_end|>\n")


def test_question_alone_text_alone_and_limit():
    asked = tokenize(Record(turns=CHAT[:1]), CHATML, encode, 10_000)
    assert asked.answer == 0
    assert bytes(asked.ids).decode().endswith("<|im_start|>assistant\n")
    text = tokenize(Record(text="x" * 100), CHATML, encode, 64)
    assert (len(text.ids), text.answer) == (64, 32)
    assert len(tokenize(Record(turns=CHAT), CHATML, encode, 20).ids) == 20


def test_a_record_the_template_refuses_is_left_out():
    late = Record(turns=(("user", "a"), ("system", "b")))
    assert tokenize(late, CHATML, encode, 100) is None
