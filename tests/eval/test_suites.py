import json
import platform
import runpy
import shutil
from importlib import metadata
from pathlib import Path

import pytest

from eval.suites import PROMPTS, Suite, load_suite, prompt_sets, suite_from_file
from factory.errors import DataError


def characters(text: str) -> list[int]:
    return [ord(character) for character in text]


@pytest.mark.parametrize("name", ["code", "stories"])
def test_shipped_suites_match_their_index_and_hold_different_prompts(name: str) -> None:
    suite = load_suite(name)
    assert suite.version == 1
    assert len(suite.prompts) >= 32
    assert len(set(suite.prompts)) == len(suite.prompts)
    assert all(prompt.strip() and len(prompt) <= 400 for prompt in suite.prompts)


def test_code_prompts_come_from_held_out_files_one_from_each() -> None:
    sources = [json.loads(line)["source"].rsplit(":", 1) for line in (PROMPTS / "code.jsonl").read_text().splitlines()]
    files = [name for name, _ in sources]
    corpus = PROMPTS.parent.parent / "recipes" / "demo" / "target" / "corpus.json"
    assert set(files) <= set(json.loads(corpus.read_text())["held_out_files"])
    assert len(set(files)) == len(files)


def test_the_code_suite_is_what_its_script_writes() -> None:
    corpus = json.loads((PROMPTS.parent.parent / "recipes" / "demo" / "target" / "corpus.json").read_text())
    here = {"python": platform.python_version()} | {name: metadata.version(name) for name in ("torch", "transformers")}
    if here != corpus["versions"]:
        pytest.skip(f"the prompts come from {corpus['versions']}, here are {here}")
    script = runpy.run_path(str(PROMPTS / "make_code_suite.py"))
    written = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in script["suite"](corpus["held_out_files"]))
    assert written == (PROMPTS / "code.jsonl").read_text(encoding="utf-8")


def test_a_changed_suite_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "prompts"
    shutil.copytree(PROMPTS, folder)
    path = folder / "stories.jsonl"
    path.write_text(path.read_text().replace("rabbit", "rabbIt", 1))
    with pytest.raises(DataError, match=r"stories\.jsonl: not the suite 'stories' version 1"):
        load_suite("stories", folder)
    assert load_suite("code", folder) == load_suite("code")
    path.unlink()
    with pytest.raises(DataError, match="install the package again"):
        load_suite("stories", folder)


def test_an_unknown_suite_names_those_there_are() -> None:
    with pytest.raises(DataError, match="shipped: code, stories"):
        load_suite("poems")


def test_the_two_sets_are_disjoint_and_stay_the_same() -> None:
    suite = load_suite("code")
    sets = prompt_sets(suite, characters, 400, 10, 12)
    chosen, confirmed = [p.request for p in sets.choose], [p.request for p in sets.confirm]
    assert chosen == list(range(10))
    assert confirmed == list(range(len(suite.prompts) - 12, len(suite.prompts)))


def test_too_few_prompts_are_shared_out_and_long_or_equal_ones_left_out() -> None:
    suite = Suite("s", None, "", ("abc", "x" * 30, "de", "abc", "", "f", "gh", "ij"))
    sets = prompt_sets(suite, characters, 20, 30, 20)
    assert [p.request for p in sets.choose] == [0, 2, 5]
    assert [p.request for p in sets.confirm] == [6, 7]
    assert (sets.skipped, sets.duplicates) == (2, 1)
    assert sets.facts()["skipped_prompts"] == 2


def test_prompts_that_do_not_fit_at_all_are_an_error_with_the_room_there_is() -> None:
    with pytest.raises(DataError, match=r"1 different prompts fit \(2 skipped: the context leaves room for 5 tokens"):
        prompt_sets(Suite("s", None, "", ("too long for it", "short", "also too long")), characters, 5, 2, 2)


def test_own_prompts_from_jsonl_from_spec_bench_and_from_lines(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "one"}\n\n{"question_id": 81, "category": "writing", "turns": ["two", "three"]}\n')
    suite = suite_from_file(path)
    assert (suite.name, suite.version, suite.prompts) == ("mine", None, ("one", "two"))
    assert len(suite.sha256) == 64
    path = tmp_path / "lines.txt"
    path.write_text("first line\n\n  second line\n")
    assert suite_from_file(path).prompts == ("first line", "  second line")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": ""}', "no text"),
        ('{"question": "x"}', "no text"),
        ("[1]", "an object is read"),
        ("{oops", "JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(f'{{"prompt": "one"}}\n{line}\n')
    with pytest.raises(DataError, match=rf"mine\.jsonl:2: .*{message}"):
        suite_from_file(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt"):
        suite_from_file(tmp_path / "none.txt")
