"""Real builds on text of every origin: what is read, what is learned, what is kept."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from factory.artifact import Artifact
from factory.building.build import build
from factory.data.scribe import read_shard
from factory.errors import DataError
from factory.models.loading import load_tokenizer
from factory.recipes.recipe import load

TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m['role'][0] + ':' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>a:' }}{% endif %}"
)
CHATS = [
    [
        {"role": "user", "content": f"q{n // 2}"},
        {"role": "assistant", "content": f"r{n}"},
        {"role": "user", "content": "m"},
    ]
    for n in range(12)
]


@pytest.fixture
def target(tiny_folder: Path) -> Path:
    """A tiny model whose tokenizer has a chat template."""
    tokenizer = load_tokenizer(tiny_folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tiny_folder)
    return tiny_folder


def silent(_done: int, _total: int, _what: str) -> None:
    pass


def made(target: Path, out: Path, data: str) -> Artifact:
    """A drafter that a single stage trains on that text."""
    path = out.with_suffix(".yaml")
    path.write_text(
        f"name: tiny\ntarget: {{model: {target}}}\ndata: {data}\n"
        "stages:\n  - {kind: drop_layers, keep: 2, score: even}\n  - {kind: distill, epochs: 1, batch: 4}\n"
    )
    (artifact,) = build(load(path), out, silent)
    return artifact


def jsonl(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_the_target_answers_conversations(target: Path, tmp_path: Path) -> None:
    jsonl(tmp_path / "c.jsonl", *({"messages": chat} for chat in CHATS), {"messages": CHATS[0]})
    data = "{prompts: c.jsonl, per_prompt: 2, max_new_tokens: 6, batch: 5, held_out: 0.25}"
    facts = made(target, tmp_path / "out", data).manifest["text"]
    assert (facts["prompts"], facts["duplicate_prompts"], facts["left_out"]) == (12, 1, 0)
    assert facts["rows"] + facts["duplicate_rows"] == 24
    (folder,) = (tmp_path / "out" / ".cache" / "text").iterdir()
    assert json.loads((folder / "facts.json").read_text()) == facts
    shards = sorted(folder.glob("*.parquet"))
    assert [len(parquet.read_table(shard)) for shard in shards] == [5, 5, 5, 5, 4]
    assert [str(field.type) for field in parquet.read_schema(shards[0])] == ["list<element: int32>"] * 2
    tokenizer = load_tokenizer(target)
    for place, (ids, spans) in enumerate(read_shard(shards[0], 5) or []):
        ((start, end),) = spans if not isinstance(spans, int) else []
        asked = "".join(tokenizer.convert_ids_to_tokens(ids[:start]))
        assert asked == f"<s>u:q{place // 2}</s><s>a:r{place}</s><s>u:m</s><s>a:"
        assert end == len(ids)


def test_conversations_are_learned_as_they_are(target: Path, tmp_path: Path) -> None:
    jsonl(tmp_path / "c.jsonl", *({"chat": chat} for chat in CHATS), {"chat": CHATS[0][:1]})
    drafter = made(
        target, tmp_path / "out", "{prompts: {file: c.jsonl, column: chat}, written_by: none, held_out: 0.25}"
    )
    facts = drafter.manifest["text"]
    assert (facts["prompts"], facts["rows"], facts["rows_without_answer"]) == (7, 12, 1)
    assert facts["answer_tokens"] == sum(len(chat[1]["content"]) + 1 for chat in CHATS)  # and the end of each turn
    # A quarter of the six questions that have answers, two answers each, is held out.
    assert drafter.manifest["facts"][1]["rows"] == 8


def test_answers_of_a_column_in_parquet(target: Path, tmp_path: Path) -> None:
    rows = [{"q": f"ask {n}", "a": "x" * (n + 1)} for n in range(8)]
    parquet.write_table(pyarrow.Table.from_pylist([*rows, rows[3]]), tmp_path / "q.parquet")
    data = "{prompts: {file: q.parquet, column: q, answer: a}, written_by: none}"
    facts = made(target, tmp_path / "out", data).manifest["text"]
    assert (facts["rows"], facts["duplicate_rows"]) == (8, 1)
    assert facts["answer_tokens"] == sum(n + 1 for n in range(1, 9))  # the EOS behind each


def test_a_build_on_a_folder_of_a_dataset(target: Path, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for part in range(2):
        jsonl(tmp_path / "set" / f"train-{part}.jsonl", *({"line": f"line {n}"} for n in range(part * 6, part * 6 + 6)))
    data = "{prompts: {dataset: ./set, column: line, samples: 9}, max_new_tokens: 4, batch: 16}"
    assert made(target, tmp_path / "out", data).manifest["text"]["prompts"] == 9


def test_what_a_text_says_decides_its_digest_not_where_it_lies(target: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    records = [{"q": f"ask {n}", "a": "x" * (n + 1)} for n in range(6)]
    jsonl(tmp_path / "one.jsonl", *records)
    parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "two.parquet")
    data = "{{prompts: {{file: {}, column: q, answer: a}}, written_by: none}}"
    first = made(target, out, data.format("one.jsonl")).manifest["chain"]
    assert made(target, out, data.format("two.parquet")).manifest["chain"] == first
    jsonl(tmp_path / "one.jsonl", *records[:-1], {"q": "ask 5", "a": "other"})
    assert made(target, out, data.format("one.jsonl")).manifest["chain"] != first


@pytest.mark.parametrize(
    ("records", "data", "message"),
    [
        (
            [{"q": "a"}, {"r": "b"}],
            "{prompts: {file: c.jsonl, column: q}}",
            r"c\.jsonl:2: no column 'q'; it has \['r'\]",
        ),
        ([{"q": "abc"}, {"q": ""}], "{prompts: {file: c.jsonl, column: q}}", r"c\.jsonl:2: no text under 'q'"),
        (
            [{"text": "abc"}, {"text": "b"}],
            "{prompts: c.jsonl, written_by: none}",
            r"c\.jsonl:2: 1 token for the target",
        ),
        (
            [{"text": "a" * 300}],
            "{prompts: c.jsonl, written_by: none}",
            "none of 1 rows fits into the target's context",
        ),
        ([{"text": "a" * 300}], "{prompts: c.jsonl}", "none of 1 prompts leaves room for 256 new tokens"),
        ([{"messages": CHATS[0][:1]}], "{prompts: c.jsonl, written_by: none}", "of 1 rows none has an answer"),
    ],
)
def test_bad_text_is_told_with_its_place(
    target: Path, tmp_path: Path, records: list[Any], data: str, message: str
) -> None:
    jsonl(tmp_path / "c.jsonl", *records)
    with pytest.raises(DataError, match=message):
        made(target, tmp_path / "out", data)
