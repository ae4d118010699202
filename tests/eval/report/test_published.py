"""Published figures beside measured ones: which are compared, and what a stranger's records may hold."""

import json
from pathlib import Path
from typing import Any

import pytest

from eval.report.published import compared, notes, published_figures, published_section, published_table
from factory.artifact import PULLED, Artifact

HERE = {"cpu": "a CPU", "threads": 2}


def row(k: int | str, stage: str = "choose", **figures: Any) -> dict[str, Any]:
    known = {"speedup": 1.5, "speedup_low": 1.25, "speedup_high": 1.75, "alpha": 0.5, "batch": 1}
    return {"artifact": "x", "drafter": "model", "k": k, "prompt_set": stage, **known, **figures}


def results(*rows: dict[str, Any], hardware: dict[str, Any] = HERE, **more: Any) -> dict[str, Any]:
    timed = [{**one, "suite": "code", "new_tokens": 30, "target_passes": 10} for one in rows]
    suites = [{"name": "code", "sha256": "c" * 64}]
    return {
        **{"hardware": hardware, "target": {"dtype": "float32"}, "suites": suites},
        **{"candidates": list(rows), "rows": timed, **more},
    }


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    """A folder that keeps evaluations; nothing else of it is looked at."""
    (tmp_path / "evals").mkdir()
    (tmp_path / "manifest.json").write_text("{}")
    return Artifact(tmp_path, {"name": "x"})


def keep(artifact: Artifact, name: str, record: Any) -> None:
    path = artifact.folder / "evals" / f"{name}.json"
    path.write_text(json.dumps({"manifest_sha256": artifact.manifest_digest(), **record}))


def pulled(artifact: Artifact, *names: str) -> None:
    record = {
        "repository": "ada/x",
        "commit": "a" * 40,
        "base_model": None,
        "evals": [f"{name}.json" for name in names],
    }
    (artifact.folder / PULLED).write_text(json.dumps(record))


def beside(artifact: Artifact, found: dict[str, Any]) -> dict[str, Any]:
    return {**found, "published": published_figures([artifact], found)}


def test_of_a_pulled_drafter_what_came_with_it_is_compared(artifact: Artifact) -> None:
    keep(artifact, "theirs", results(row(2, speedup=2.0), row(4, "confirm")))  # of hardware that is called as ours
    keep(artifact, "mine", results(row(2), hardware={"gpu": "another of mine"}))
    pulled(artifact, "theirs")
    found = beside(artifact, results(row(2), row(3)))
    pairs = {(pair["k"], pair["prompt_set"]): (pair["published"], pair["here"]) for pair in compared(found)}
    assert set(pairs) == {(2, "choose"), (3, "choose"), (4, "confirm")}
    there, here = pairs[2, "choose"]
    assert (there["speedup"], there["tau"], there["device"]) == (2.0, 3.0, "a CPU, 2 threads") and here[
        "speedup"
    ] == 1.5
    assert pairs[3, "choose"][0] is None and pairs[4, "confirm"][1] is None
    assert notes(found) == ["Here: a CPU, 2 threads, float32.", f"Published as ada/x, commit {'a' * 12}."]
    assert "2.00x (1.25 to 1.75)" in published_section(found) and published_table(found) is not None


def test_of_one_that_was_built_here_what_other_hardware_measured(artifact: Artifact) -> None:
    keep(artifact, "a", results(row(2)))
    assert published_figures([artifact], results(row(2))) == []
    assert published_section(beside(artifact, results(row(2)))) == "" and compared(results(row(2))) == []
    keep(artifact, "b", results(row(2), hardware={"gpu": "a GPU"}, target={"dtype": "bfloat16"}, suites=[]))
    found = beside(artifact, results(row(2)))
    assert [one["device"] for one in found["published"]] == ["a GPU"]
    assert notes(found) == [
        "Here: a CPU, 2 threads, float32.",
        "The figures of a GPU are of other prompts (unknown), so alpha differs too.",
        "Those of a GPU are of bfloat16.",
    ]


GARBAGE = [None, 5, "x", [], {}, [5], [None], {"a": 1}, [{}], [{"artifact": "x"}], float("inf"), 10**400, "<b>"]


@pytest.mark.parametrize("value", GARBAGE, ids=lambda value: repr(value)[:9])
def test_what_a_stranger_writes_is_shown_or_left_out(artifact: Artifact, value: Any) -> None:
    whole = results(row(2))
    strange = [{**whole, key: value} for key in whole]
    strange += [results({**row(2), key: value}) for key in row(2) if key != "artifact"]
    strange += [results(row(2), rows=[{**row(2), "new_tokens": value, "target_passes": value}])]
    for number, record in enumerate(strange):
        record["hardware"] = record["hardware"] if isinstance(record["hardware"], dict) else {"gpu": f"{number}"}
        keep(artifact, f"{number}", {**record, "hardware": {**record["hardware"], "gpu": f"<i>{number}</i>"}})
    pulled(artifact, *map(str, range(len(strange))))
    found = beside(artifact, results(row(2)))
    assert len(found["published"]) == len(strange)
    page = published_section(found)
    assert "<i>" not in page and "<b>" not in page and published_table(found) is not None
    json.dumps(compared(found), allow_nan=False)
