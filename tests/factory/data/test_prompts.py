import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from factory.data.prompts import Entry, read_file, read_prompts
from factory.errors import DataError

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "So."},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "No."},
]
SHAREGPT = [
    {"from": {"user": "human", "assistant": "gpt"}.get(said["role"], said["role"]), "value": said["content"]}
    for said in CHAT
]


def jsonl(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def test_prompt_files(tmp_path: Path) -> None:
    lines = tmp_path / "p.txt"
    lines.write_text("one\n\n two\r\n")
    assert read_prompts(lines) == ["one", " two"]
    records = tmp_path / "p.jsonl"
    records.write_text('{"prompt": "a\\nb"}\n{"turns": ["c", "d"]}\n\n{"text": "e\u2028f"}\n')
    assert read_prompts(records) == ["a\nb", "c", "e\u2028f"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{bad\n", r"p\.jsonl:1: not JSON"),
        ('{"prompt": "a"}\n[1]\n', r"p\.jsonl:2: a list, where an object is read"),
        ('{"question": "a"}\n', r"p\.jsonl:1: no text under .*question"),
        ('{"turns": []}\n', r"p\.jsonl:1: no text"),
        ('{"prompt": " "}\n', r"p\.jsonl:1: no text"),
        ('{"prompt": 3}\n', r"p\.jsonl:1: no text under 'prompt', but a number; name a column"),
        ('{"messages": ["a"]}\n', r"p\.jsonl:1: 'messages' holds no conversation"),
        ("\n", r"p\.jsonl: holds no prompt"),
        (json.dumps({"messages": CHAT}), r"p\.jsonl:1: a conversation, where text is read"),
    ],
)
def test_bad_prompt_files_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_prompts(path)


def test_an_unreadable_prompt_file_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt: cannot be read"):
        read_prompts(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match=r"latin\.txt: cannot be read"):
        read_prompts(tmp_path / "latin.txt")
    (tmp_path / "p.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"p\.parquet: cannot be read; is it a whole parquet file"):
        read_prompts(tmp_path / "p.parquet")


@pytest.mark.parametrize("name", ["messages", "conversations", "conversation", "prompt"])
@pytest.mark.parametrize("said", [CHAT, SHAREGPT])
def test_conversations_are_recognised(tmp_path: Path, name: str, said: list[dict[str, str]]) -> None:
    (entry,) = read_file(jsonl(tmp_path / "c.jsonl", {"id": 1, name: said}))
    assert list(entry.messages) == CHAT
    assert list(entry.question()) == CHAT[:4]
    assert (entry.characters(prompt=True), entry.characters(prompt=False)) == (20, 23)
    assert Entry.of(entry.place, json.loads(json.dumps(entry.record()))) == entry


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "user", "content": "a"}, {"role": "narrator", "content": "b"}], "message 2: its role is 'narrator'"),
        ([{"from": "function_call", "value": "b"}], "message 1: its role is 'function_call'; known are user, human"),
        ([{"role": "user", "content": [{"type": "image"}]}], "message 1: its content is no text"),
        ([{"role": "user", "content": "a"}, "b"], "message 2: not a message"),
        ([{"role": "user", "content": " "}], r"no text under .*messages"),
    ],
)
def test_bad_conversations_name_line_and_message(tmp_path: Path, messages: list[Any], message: str) -> None:
    path = jsonl(tmp_path / "c.jsonl", {"text": "fine"}, {"messages": messages})
    with pytest.raises(DataError, match=rf"c\.jsonl:2: {message}"):
        read_file(path)


def test_columns_of_jsonl_and_parquet(tmp_path: Path) -> None:
    records = [{"question": "1+1?", "answer": "2", "text": "no"}, {"question": "2+2?", "answer": "4", "text": "no"}]
    lines = jsonl(tmp_path / "q.jsonl", *records)
    parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "q.parquet")
    for path, first in ((lines, f"{lines}:1"), (tmp_path / "q.parquet", f"{tmp_path}/q.parquet: row 1")):
        assert read_file(path, "question", "answer") == [
            Entry(first, "1+1?", "2"),
            Entry(f"{first[:-1]}2", "2+2?", "4"),
        ]
        assert [entry.record() for entry in read_file(path, "question", samples=1)] == ["1+1?"]
        assert [entry.text for entry in read_file(path)] == ["no", "no"]
        with pytest.raises(DataError, match=rf"^{first}: no column 'reply'; it has \['answer', 'question', 'text'\]$"):
            read_file(path, "question", "reply")


def test_conversations_in_parquet(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.Table.from_pylist([{"messages": CHAT}, {"messages": CHAT[:2]}]), tmp_path / "c.parquet")
    assert [list(entry.messages) for entry in read_file(tmp_path / "c.parquet")] == [CHAT, CHAT[:2]]
    with pytest.raises(DataError, match=r"row 1: 'messages' holds a conversation, answers among it; remove `answer`"):
        read_file(tmp_path / "c.parquet", "messages", "messages")


def test_parquet_without_a_column_of_a_usual_name(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"quote": ["a"]}), tmp_path / "q.parquet")
    with pytest.raises(DataError, match=r"q\.parquet: row 1: no text under .*; keys here: \['quote'\]"):
        read_file(tmp_path / "q.parquet")
    with pytest.raises(DataError, match=r"q\.parquet: row 1: no column 'text'; it has \['quote'\]"):
        read_file(tmp_path / "q.parquet", "text")
    parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), tmp_path / "none.parquet")
    with pytest.raises(DataError, match=r"none\.parquet: holds no prompt"):
        read_file(tmp_path / "none.parquet")


def test_empty_rows_are_refused_or_left_out(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "e.jsonl", {"q": "a", "a": "b"}, {"q": "c", "a": ""}, {"q": None, "a": "d"}, {"q": "e", "a": "f"}
    )
    with pytest.raises(
        DataError, match=r"e\.jsonl:2: no text under 'q' or 'a'; mend the row, or .* `skip_empty: true`"
    ):
        read_file(path, "q", "a")
    with pytest.raises(DataError, match=r"e\.jsonl:3: no text under 'q'; "):
        read_file(path, "q")
    assert [entry.place[-2:] for entry in read_file(path, "q", "a", skip_empty=True)] == [":1", ":4"]
    assert len(read_file(path, "q", samples=2, skip_empty=True)) == 2
