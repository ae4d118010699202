import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from factory.data.prompts import Entry
from factory.data.rows import dataset_rows
from factory.errors import DataError, RecipeError
from factory.recipes.recipe import Recipe, load
from factory.recipes.sources import Data, FilePrompts, HubPrompts

CHAT = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A folder of two parquet files for training and one for testing, as `datasets` reads it."""
    folder = tmp_path / "quotes"
    folder.mkdir()
    for part, numbers in (("train-0", range(3)), ("train-1", range(3, 5)), ("test-0", range(9, 10))):
        rows = [{"text": f"text {n}", "reply": f"reply {n}", "chat": CHAT, "id": n} for n in numbers]
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{part}.parquet")
    return folder


def test_a_dataset_is_streamed(dataset: Path, tmp_path: Path) -> None:
    source = HubPrompts(dataset=str(dataset), column="text", samples=4)
    entries = source.read(tmp_path / "cache")
    assert [entry.text for entry in entries] == [f"text {n}" for n in range(4)]
    assert entries[3].place == f"dataset {dataset} (train), row 4"
    test = HubPrompts(dataset=str(dataset), split="test", column="text", answer="reply")
    assert [entry.record() for entry in test.read(tmp_path / "cache")] == [{"prompt": "text 9", "answer": "reply 9"}]
    chat = HubPrompts(dataset=str(dataset), split="test", column="chat").read(tmp_path / "cache")
    assert [list(entry.messages) for entry in chat] == [CHAT]
    assert not (tmp_path / "cache").exists()  # what lies here may change, and is read anew
    (first, *_) = dataset_rows(str(dataset), None, "train", ["text"])
    assert (first.values, first.columns) == ({"text": "text 0"}, ("text", "reply", "chat", "id"))


def test_a_dataset_has_configurations(tmp_path: Path) -> None:
    folder = tmp_path / "both"
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
        (folder / name / "train.jsonl").write_text(json.dumps({"text": name}) + "\n")
    head = "configs:\n" + "".join(f"- {{config_name: {n}, data_files: {n}/train.jsonl}}\n" for n in ("one", "two"))
    (folder / "README.md").write_text(f"---\n{head}---\n")
    for name in ("one", "two"):
        (entry,) = HubPrompts(dataset=str(folder), subset=name, column="text").read(tmp_path)
        assert (entry.text, entry.place) == (name, f"dataset {folder} ({name}, train), row 1")
    with pytest.raises(DataError, match=r"both \(three, train\): .*three.*; check its name, subset and split"):
        HubPrompts(dataset=str(folder), subset="three", column="text").read(tmp_path)


def test_what_is_wrong_with_a_dataset_is_told(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"\(train\), row 1: no column 'txet'; it has \['chat', 'id', 'reply', 'text'\]"
    ):
        HubPrompts(dataset=str(dataset), column="txet").read(tmp_path)
    with pytest.raises(DataError, match=r"\(dev\): .*dev.*; check its name, subset and split, and the network"):
        HubPrompts(dataset=str(dataset), split="dev", column="text").read(tmp_path)
    with pytest.raises(DataError, match=r"row 1: no text under 'id', but a number; name a column that holds text"):
        HubPrompts(dataset=str(dataset), column="id").read(tmp_path)


def test_what_the_hub_said_is_kept(tmp_path: Path) -> None:
    """Whether an older version kept texts or this one keeps entries; no network is asked."""
    source = HubPrompts(dataset="user/set", split="train", column="text", samples=2)
    from factory.provenance import sha256_text

    old = sha256_text('{"dataset":"user/set","split":"train","column":"text","samples":2}')
    (tmp_path / f"{old}.json").write_text(json.dumps(["a", "b"]))
    assert source.read(tmp_path) == [
        Entry("dataset user/set (train), row 1", "a"),
        Entry("dataset user/set (train), row 2", "b"),
    ]
    (tmp_path / f"{old}.json").write_text(json.dumps([["row 7", "a"], ["row 9", CHAT]]))
    assert source.read(tmp_path) == [Entry("row 7", "a"), Entry("row 9", messages=tuple(CHAT))]


def faults_of(tmp_path: Path, data: str) -> list[str]:
    (tmp_path / "r.yaml").write_text(f"name: x\ndata: {data}\nstages: [{{kind: distill}}]\n")
    try:
        load(tmp_path / "r.yaml")
    except RecipeError as error:
        return [line.removeprefix(f"{tmp_path}/r.yaml:2: data.") for line in str(error).splitlines()]
    return []


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ("{prompts: {file: p.txt, column: text}}", "prompts.column: a .txt file has no columns"),
        ("{prompts: {file: p.jsonl, answer: a}, written_by: none}", "prompts.answer: name the column of the prompts"),
        ("{prompts: {file: p.jsonl, skip_empty: true}}", "prompts.skip_empty: name the column that may be empty"),
        ("{prompts: {file: p.jsonl, column: q, answer: a}}", "prompts.answer: the target writes the answers; remove"),
        ("{prompts: {file: p.jsonl, colunm: q}}", "prompts.colunm: unknown key 'colunm'; did you mean 'column'?"),
        ("{prompts: {file: gone.jsonl}}", "prompts.file: no such file: looked for "),
        ("{prompts: {dataset: ./gone, column: q}}", "prompts.dataset: no such folder: looked for "),
        ("{prompts: bos, samples: 3, per_prompt: 2}", "per_prompt: `samples` says how many texts there are in all"),
        ("{prompts: bos, temperature: 0}", "temperature: at 0 the target has one text only to write from nothing"),
        ("{prompts: bos, top_k: 1, samples: 2}", "top_k: at 1 all texts of one prompt are equal; raise it, or ask"),
        ("{prompts: p.jsonl, temperature: 0, per_prompt: 2}", "temperature: at 0 all texts of one prompt are equal"),
        ("{prompts: p.jsonl, temperature: 0, samples: 3}", "samples: 3 texts of 2 prompts would be equal at"),
        ("{prompts: {dataset: a/b, column: c, samples: 5}, temperature: 0, samples: 6}", "temperature: at 0 all texts"),
        ("{prompts: bos, top_p: 0}", "top_p: must be greater than 0, not 0"),
        ("{prompts: 3}", "prompts: must be text, not 3"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, data: str, fault: str) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    (tmp_path / "p.txt").write_text("a\n")
    faults = faults_of(tmp_path, data)
    assert len(faults) == 1 and faults[0].startswith(fault)


@pytest.mark.parametrize(
    "data",
    [
        "{prompts: bos, temperature: 0, samples: 1}",
        "{prompts: p.jsonl, temperature: 0}",
        "{prompts: p.jsonl, temperature: 0, samples: 2}",
        "{prompts: p.jsonl, per_prompt: 4, top_p: 0.9, top_k: 50}",
        "{prompts: {file: p.jsonl, column: prompt, answer: prompt}, written_by: none, temperature: 0}",
    ],
)
def test_what_makes_sense_passes(tmp_path: Path, data: str) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    assert faults_of(tmp_path, data) == []


def test_paths_of_sources_become_absolute(tmp_path: Path, dataset: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"q": "a"}\n')
    path = tmp_path / "r.yaml"
    for data, key, expected in (
        ("{file: p.jsonl, column: q}", "file", tmp_path / "p.jsonl"),
        ("{dataset: quotes, column: text}", "dataset", dataset),
        ("{dataset: user/quotes, column: text}", "dataset", "user/quotes"),
    ):
        path.write_text(f"name: x\ndata: {{prompts: {data}}}\nstages: [{{kind: distill}}]\n")
        (loaded,) = load(path)
        assert loaded.recipe.data is not None
        assert getattr(loaded.recipe.data.prompts, key) == str(expected)
        path.write_text(loaded.recipe.to_yaml())
        assert load(path)[0].recipe == loaded.recipe  # what an artifact keeps reads back equal
        assert isinstance(loaded.recipe, Recipe)


def test_how_many_texts_the_target_writes() -> None:
    file = FilePrompts(file="p.jsonl", samples=100)
    assert Data(prompts="bos").texts(1) == 1024
    assert Data(prompts="bos", per_prompt=7).texts() == 7
    assert Data(prompts="p.txt", samples=5).texts(80) == 5
    assert Data(prompts="p.txt", per_prompt=3).texts(80) == 240
    assert Data(prompts=file).texts() == 100
    assert Data(prompts=file).texts(80) == 80  # one a prompt, and there were no more
    assert Data(prompts=file, samples=7).texts(80) == 7
    assert Data(prompts="p.txt", temperature=0).texts(80) == 80
