"""500 recipes, 200 plans and 200 files of bytes that are nearly right: told what is wrong with them, never a traceback.

The seed is fixed and no example is kept, so that a run is the same everywhere; a failure prints its file.
"""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from factory.errors import RecipeError
from factory.files.documents import read
from factory.files.yaml12 import dump

Run = Callable[..., tuple[int, str, str]]
LONGEST_S = 30.0  # for one file; what is bounded takes milliseconds, what is not would take hours

RECIPES: list[dict[str, Any]] = [
    {
        "name": "x",
        "target": {"model": "target", "dtype": "float32"},
        "data": {"prompts": "bos", "samples": 10, "max_new_tokens": 8, "held_out": 0.2, "temperature": 1.0, "batch": 4},
        "stages": [
            {"kind": "drop_layers", "keep": 2, "score": "block_influence"},
            {"kind": "prune_width", "keep_ffn": 0.5, "keep_heads": 2, "multiple_of": 8},
            {
                "kind": "distill",
                "loss": [{"kind": "jsd", "beta": 0.3, "weight": [[0, 1.0], [0.5, 0.0]]}, {"kind": "tv"}],
                "epochs": 2,
                "lr": 1e-3,
                "on_policy": {"share": 0.5, "new_tokens": 4},
                "select": {"keep": 0.5},
                "freeze": ["embedding"],
                "lora": 4,
                "warmup": 0.1,
            },
        ],
        "keep_raw": True,
        "seed": 3,
    },
    {
        "name": "y",
        "target": {"model": "target", "config": "target/config.json"},
        "data": {"prompts": {"file": "p.jsonl", "column": "q", "answer": "a", "samples": 3}, "written_by": "none"},
        "stages": [{"kind": "fresh", "inherit": ["head"]}, {"kind": "distill", "teacher": "cache", "top_k": 8}],
        "grid": {"stages.1.lr": [1e-3, 2e-3], "seed": [0, 1, 2]},
    },
    {
        "name": "z",
        "target": {"model": "target"},
        "data": {"prompts": "bos", "per_prompt": 8},
        "stages": [{"kind": "drop_layers", "keep": [0, 3]}, {"kind": "gptq", "bits": 4, "group_size": 32}],
    },
]
PLANS: list[dict[str, Any]] = [
    {
        "suites": ["code"],
        "ks": [2, 4],
        "temperatures": [0, 1.0],
        "batches": [1, 2],
        "prompts": 4,
        "max_new_tokens": 16,
        "device": "auto",
        "reader": "eager",
        "top_p": 0.9,
        "auto_k": False,
        "threads": 1,
        "seed": 0,
    },
    {"device_map": "auto", "max_memory": {"0": "9GiB", "cpu": 1000}, "drafter_device": "cuda:1", "dtype": "float32"},
]

odd_text = st.sampled_from(
    [
        "",
        " ",
        "é",
        "\u202e",
        "a\nb",
        "a: b",
        "-",
        "--",
        "<<",
        "*a",
        "&a",
        "!!int 3",
        "null",
        "1e999",
        "1_0",
        "~",
        "..",
        "/",
    ]
)
odd_value = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, -1, 2**31, 2**63 - 1, -(2**63) + 1, 10**9])
    | st.sampled_from([0.0, -0.0, 0.5, 1.0, 1.5, -1.0, 1e-300, 1e300, 1.7e308, 5e-324])
    | odd_text
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
    | st.sampled_from(
        [[], {}, [[]], [None], {"kind": "distill"}, {"kind": None}, {"file": "p.jsonl"}, [0, 0], [[0, 1]]]
    )
)


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every key and index of a document."""
    inside = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in inside:
        yield (*path, key)
        yield from places(value, (*path, key))


def at(data: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        data = data[part]
    return data


@st.composite
def mutated(draw: st.DrawFn, valid: list[dict[str, Any]]) -> dict[str, Any]:
    """A valid document with one to three things dropped, renamed, retyped, swapped, nested or doubled."""
    data = copy.deepcopy(draw(st.sampled_from(valid)))
    for _ in range(draw(st.integers(1, 3))):
        known = list(places(data))
        if not known:
            return data
        path = draw(st.sampled_from(known))
        around, key = at(data, path[:-1]), path[-1]
        match draw(st.sampled_from(["drop", "rename", "retype", "retype", "swap", "nest", "double", "bury"])):
            case "drop":
                del around[key]
            case "rename" if isinstance(around, dict):
                text = draw(odd_text | st.just(f"{key}s") | st.just(str(key)[1:]) | st.text(max_size=4))
                around[text] = around.pop(key)
            case "retype":
                around[key] = draw(odd_value)
            case "swap":
                other = draw(st.sampled_from(known))
                assume(other[: len(path)] != path)
                around[key] = copy.deepcopy(at(data, other))
            case "nest":
                around[key] = draw(st.sampled_from([[around[key]], {"kind": around[key]}, {str(key): around[key]}]))
            case "double" if isinstance(around, list):
                around.append(copy.deepcopy(around[key]))
            case "bury":
                for _depth in range(draw(st.integers(1, 40))):
                    around[key] = [around[key]]
            case _:
                around[key] = str(around[key])
    return data


SNIPPETS = [
    *(b"\t", b"\x00", b"\xff", b"\xef\xbb\xbf", b"\r", b"\x85", b"\xe2\x80\xa8", b"\n", b"#", b"'", b"{", b"]"),
    *(b"&a ", b"*a", b"<<: *a\n", b"- ", b": ", b"|\n", b"? [a]\n: b\n", b"\nseed: 1\nseed: 2\n"),
    *(b"!!python/object:os.system ", b"%YAML 1.1\n---\n", b"\n---\n", b"9" * 5000, b"[" * 3000),
    *(b"1e999", b".nan", b"0x", b"\\ud800", b'"\\UFFFFFFFF"'),
]


@st.composite
def spoilt(draw: st.DrawFn, valid: list[bytes]) -> bytes:
    """A valid text with one to three pieces put in, cut out or repeated, byte by byte."""
    text = draw(st.sampled_from(valid))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 12)))
        piece = draw(st.sampled_from(SNIPPETS) | st.binary(max_size=4) | st.just(text[start:end] * 3))
        text = text[:start] + piece + text[end:]
    return text


steady = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],  # the file is short as it is, and shrinking would cost minutes
)


def require_sound(said: tuple[int, str, str], path: Path) -> None:
    """0 or 2, and each line of a fault begins with the file that it is in, and its line where that is known."""
    code, stdout, stderr = said
    text = path.read_bytes()[:2000]
    assert code in (0, 2), (said, text)
    assert "Traceback" not in stdout + stderr, (said, text)
    faults = stderr.split("\n")[:-1] if code == 2 else []
    assert bool(faults) == (code == 2), (said, text)
    wrong = [fault for fault in faults if not re.match(rf"({path}|HERE/p\.jsonl):\d+: .|{path}: not text", fault)]
    assert not wrong, (wrong, text)


@pytest.fixture(autouse=True)
def _prompts(here: Path) -> None:
    (here / "p.jsonl").write_text('{"q": "one", "a": "two"}\n' * 3)


def check(factory: Run, text: bytes) -> None:
    path = Path("r.yaml")
    path.write_bytes(text)
    began_s = time.monotonic()
    said = factory("check", "r.yaml")
    assert time.monotonic() - began_s < LONGEST_S, text[:2000]
    require_sound(said, path)


@settings(steady, max_examples=350)
@given(data=mutated(RECIPES))
def test_recipes_of_another_shape(factory: Run, data: dict[str, Any]) -> None:
    check(factory, dump(data).encode(errors="replace"))


@settings(steady, max_examples=150)
@given(text=spoilt([dump(data).encode() for data in RECIPES]))
def test_recipes_of_other_bytes(factory: Run, text: bytes) -> None:
    check(factory, text)


def plan(factory: Run, text: bytes) -> None:
    """Through the command, which looks for artifacts only once the plan is sound."""
    path = Path("p.yaml")
    path.write_bytes(text)
    said = factory("eval", "target", "--plan", "p.yaml")
    if said[2] != "target: no artifact there; `factory build RECIPE` makes one\n":
        require_sound(said, path)


@settings(steady, max_examples=150)
@given(data=mutated(PLANS))
def test_plans_of_another_shape(factory: Run, data: dict[str, Any]) -> None:
    plan(factory, dump(data).encode(errors="replace"))


@settings(steady, max_examples=50)
@given(text=spoilt([dump(data).encode() for data in PLANS]))
def test_plans_of_other_bytes(factory: Run, text: bytes) -> None:
    plan(factory, text)


def test_a_billion_laughs_end_at_once() -> None:
    laughs = "a: &a [x, x]\n" + "".join(
        f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    began_s = time.monotonic()
    with pytest.raises(RecipeError) as caught:
        read(laughs, "r.yaml")
    assert time.monotonic() - began_s < LONGEST_S
    told = "anchors and aliases (& and *) are not read here: write the value out"
    assert str(caught.value).splitlines() == [f"r.yaml:{line}: {told}" for line in range(1, 10)]
