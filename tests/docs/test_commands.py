"""Every command and every example of the documentation, tried.

Each command of README and of all pages, recipes and plans is done here, in the order in which a reader would do them,
in a folder laid out as a clone is, but for its target, which is tiny. What CI cannot do stands in NOT_DONE with its
reason, and is checked as far as that goes (`tests/support/documented.py`). A command that is neither fails; so does an
entry that no page asks for any more.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pyarrow
import pytest
import yaml
from documented import Command, Outcome, commands, pages, parse, replaced, run, simple, snippets
from hub_server import HubServer
from pyarrow import parquet

from eval.plan import EvalPlan, load_plan
from factory.forecasting.estimate import forecast_recipe
from factory.forecasting.profile import BUILT_IN
from factory.recipes.recipe import load

ROOT = Path(__file__).resolve().parents[2]
PAGES = pages(ROOT)
SCRIPTS = [
    path.relative_to(ROOT).as_posix()
    for top in ("docs", "recipes", "eval/prompts")
    for path in sorted((ROOT / top).rglob("*.py"))
]
ROW = {
    "question": "Who?",
    "answer": "I.",
    "messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}],
}
PROMPTS = "".join(f"def number_{number}(self):\n" for number in range(24))

# What a page calls what it cannot know, and what that is here. The longer ones first.
PLACES = {
    "MODEL_OR_FOLDER": "target",
    "--plan demo": "--plan tiny.yaml",
}
# Seconds less than `smoke`, since it is run a dozen times.
TINY = {
    **{"suites": ["stories"], "prompts": 2, "confirm_prompts": 2, "warmup_prompts": 1, "max_new_tokens": 6, "ks": [2]},
    **{"lookup_ks": [2], "raw_ks": [2], "temperatures": [0.0], "repeats": 1, "confirm_repeats": 1, "parity_prompts": 1},
    **{"parity_new_tokens": 6, "device": "cpu", "dtype": "float32", "threads": 1},
}
# A stranger's own files, which pages speak of.
FILES = {
    "tiny.yaml": yaml.safe_dump(TINY),
    "prompts.txt": PROMPTS,
    "prompts.jsonl": '{"prompt": "Once"}\n',
    "broken.yaml": (
        "name: x\ndata:\n  samples: 1k\n  prompts: bos\n"
        "stages: [{kind: drop_layer, keep: 2},\n  {kind: distill, epoch: 1}]\n"
    ),
}
# Appended, so that nothing takes longer than it must.
SHORTER = {
    "factory build": "--set data.samples=12 --set data.max_new_tokens=8 --set stages.1.epochs=1 --quiet",
    "factory doctor": "--no-measure",
    "factory eval artifacts/mine --prompts prompts.txt": "--plan tiny.yaml",
    "factory eval user/name": "--plan tiny.yaml",
}
# Refused as it stands, since that drafter is not faster; so it is sent with a reason, to a Hub on this machine.
PUBLISH = "factory publish artifacts/demo/quick --to user/name"
AS = {PUBLISH: f"{PUBLISH} --even-if-slower tried --base-model user/target"}
# What `make demo` makes, and one that is published; pages begin where that lies there.
DEMO = (
    "factory build recipes/demo/quick.yaml --out artifacts/demo",
    "factory eval artifacts/demo --plan tiny.yaml",
    AS[PUBLISH],
)
# `*` is anything. Each is parsed all the same, its recipe forecast, its plan loaded.
NOT_DONE = {
    "it is the suite, or begins it": ["make check", "pytest *"],
    "it builds and measures for minutes; README's tour does the same with a tiny target": [
        "factory build recipes/demo/gpu*.yaml --out artifacts/gpu",
        "factory build recipes/demo/half_hour.yaml --out artifacts/half-hour",
        "factory build recipes/demo/patient.yaml --out artifacts/demo",
        "factory build docs/benchmarks/moves/*.yaml --out artifacts/moves",
        "factory eval artifacts/moves --plan docs/benchmarks/moves_plan.yaml",
        "factory eval artifacts/half-hour --plan *",
    ],
    "it measures for minutes; tests/eval/breakeven and tests/eval/lossless do it with tiny models": [
        "factory eval artifacts/* --plan demo --map",
        "factory eval artifacts/* --plan demo --certify",
    ],
    "it measures for many minutes; tests/e2e/test_decoder_bench.py runs it with tiny settings": ["make bench"],
    "it measures for many minutes": [
        "python docs/benchmarks/moves.py artifacts/moves",
        "python docs/benchmarks/published_moves.py run",
        "python docs/benchmarks/distillation.py *",
        "python docs/benchmarks/distillation_peer.py *",
        "python docs/benchmarks/teacher_cache.py --drafter artifacts/half-hour/half-hour",
        "python docs/benchmarks/loss_memory.py --rounds 2",
        "python docs/table.py artifacts/half-hour/results.json",
    ],
    "it needs 18 GB of disk": ["python docs/benchmarks/low_memory.py FOLDER"],
    "it needs a GPU; tests/e2e/test_gpu_check.py runs it small": ["make gpu-check"],
    "it downloads": ["make wheels", "pip install *"],
    "it needs a model and stories from the Hub": [
        "factory build recipes/gpt2-layers2.yaml",
        "python docs/benchmarks/story_prompts.py *",
        "factory build * --target stories260K *",
        "factory eval artifacts/stories* --prompts prompts.jsonl *",
        "python docs/table.py artifacts/stories/results.json",
    ],
    "it needs 16 GB of weights from the Hub and a GPU": [
        "factory build recipes/llama2-prune50.yaml",
        "factory build recipes/llama3-8b-layers.yaml",
        "factory build recipes/qwen3-8b-layers5.yaml",
    ],
    "it starts processes; tests/e2e/test_processes.py and test_eval_processes.py do so": [
        "accelerate launch *",
        "torchrun *",
    ],
    "it writes into the start file of the shell that you are in": ["factory --install-completion"],
    "it is of the shell that you are in": ["factory --show-completion"],
    "it needs two GPUs": ["factory eval artifacts/demo/quick --plan plan.yaml"],
}
# What a refusal says, of commands that pages show to be refused: exit code 2.
REFUSED = {"factory publish artifacts/demo/quick --to user/name --dry-run": "it is not shown to be faster"}
# Pages whose Python another test runs, on models of its own.
PYTHON = {"docs/python.md": "tests/factory/api/test_api.py", "docs/report.md": "tests/docs/test_report_page.py"}
REASONS = {pattern: reason for reason, patterns in NOT_DONE.items() for pattern in patterns}


def write_files(folder: Path) -> None:
    for name, text in FILES.items():
        (folder / name).write_text(text)


def shorter(text: str) -> str:
    """A page's plan with TINY's sizes where it names none; what is no plan as it is."""
    given = yaml.safe_load(text)
    if not set(given) <= set(EvalPlan.model_fields) - {"prompts"}:
        return text
    return text + "".join(yaml.safe_dump({key: value}) for key, value in TINY.items() if key not in given)


def reason(text: str) -> str | None:
    """Why a command is not done; None where it is. Brackets mean themselves."""
    return next((why for one, why in REASONS.items() if fnmatchcase(text, one.replace("[", "[[]"))), None)


@pytest.fixture(scope="module")
def clone(
    tmp_path_factory: pytest.TempPathFactory, tiny_target: Callable[..., Path]
) -> Iterator[Callable[[str], list[tuple[Command, Outcome]]]]:
    """`clone(page)` does the page's commands in a folder like a clone. README's come first: pages begin behind it."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("docs", "eval", "Makefile", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "recipes", folder / "recipes", ignore=shutil.ignore_patterns("target"))
    target = tiny_target("llama", folder / "recipes/demo/target", context=1024)
    shutil.copy(ROOT / "recipes/demo/target/README.md", target)  # its licence is read off it
    (folder / "target").symlink_to(target)
    write_files(folder)
    done: dict[tuple[Path, str], Outcome] = {}  # a command is done once, wherever it stands
    told: dict[str, list[tuple[Command, Outcome]]] = {}

    def once(text: str) -> Outcome:
        here = Path.cwd()
        text += "".join(f" {more}" for start, more in SHORTER.items() if text.startswith(start))
        if text.startswith("cd "):
            os.chdir(text.removeprefix("cd "))
            return Outcome(0, "")
        if (here, text) not in done:
            done[here, text] = run(text, given="def main():\n")
            if text.startswith("factory init "):  # the shipped target is true, and slow
                shutil.copytree(target, here / text.split()[2] / "target", dirs_exist_ok=True)
                write_files(here / text.split()[2])
        return done[here, text]

    def tour(page: str) -> list[tuple[Command, Outcome]]:
        if page not in told:
            told[page] = []
            os.chdir(folder)
            for block in snippets(ROOT, page, "yaml"):
                if named := re.match(r"# (\w+\.yaml)\b", block.text):
                    (folder / named[1]).write_text(shorter(replaced(block.text, PLACES)))
            for command in commands(ROOT, page):
                if reason(command.text) is None:
                    told[page].append((command, once(replaced(AS.get(command.text, command.text), PLACES))))
        return told[page]

    with pytest.MonkeyPatch.context() as patch, HubServer() as hub:
        hub.add("user/target", {path.name: path.read_bytes() for path in target.iterdir()})
        hub.point_client(patch, folder / "hf", hub.user("user", "hf_of_this_test"))
        patch.chdir(folder)
        patch.setenv("HOME", str(folder))  # nothing of the machine's own is written to
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("COLUMNS", "120")
        tour("README.md")
        os.chdir(folder)
        for text in DEMO:
            assert once(text).code == 0, once(text).output
        yield tour


@pytest.mark.parametrize("page", [page for page in PAGES if commands(ROOT, page)])
def test_commands(page: str, clone: Callable[[str], list[tuple[Command, Outcome]]]) -> None:
    for command, outcome in clone(page):
        if command.text in REFUSED:
            assert outcome.code == 2 and REFUSED[command.text] in outcome.output, f"{command}\n{outcome.output}"
        elif command.shown is None:
            assert outcome.code == 0, f"{command}\n{outcome.output}"
        else:
            said, shown = ([line.rstrip() for line in text.splitlines()] for text in (outcome.output, command.shown))
            assert said == [line for line in shown if line], f"{command}\n{outcome.output}"
    faults = [
        f"{command}: {fault}"
        for command in commands(ROOT, page)
        if reason(command.text) and (fault := parse(command.text, ROOT))
    ]
    assert faults == []


def test_no_reason_is_left_over() -> None:
    asked = {command.text for page in PAGES for command in commands(ROOT, page)}
    assert [one for one in REASONS if not any(fnmatchcase(text, one.replace("[", "[[]")) for text in asked)] == []
    assert set(REFUSED) <= asked


MENTIONED = re.compile(r"`((?:factory|make|python docs/\S+|pip install) [^`\n]+)`")


@pytest.mark.parametrize("page", [page for page in PAGES if page.endswith(".md")])
def test_what_is_mentioned_within_a_sentence_exists(page: str) -> None:
    """Placeholders stand for files there, and arguments may be left out, so only the words themselves are looked at."""
    prose = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    faults = [(text, parse(text, ROOT)) for text in MENTIONED.findall(prose)]
    assert [(text, fault) for text, fault in faults if fault and not re.search("Missing|requires an", fault)] == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_says_at_its_head_how_it_is_called(script: str) -> None:
    head = ast.get_docstring(ast.parse((ROOT / script).read_text(encoding="utf-8"))) or ""
    lines = [line for line in head.splitlines() if re.match(r"    (factory|python|make) ", line)]
    asked = [text for line in lines for text in simple(ROOT, line.strip())]
    there = [text.replace("FOLDER", ".") for text in asked]
    assert [(text, fault) for text in there if (fault := parse(text, ROOT))] == []


def json_lines(table: pyarrow.Table, path: Path) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in table.to_pylist()))


HEAD = {"name": "x", "stages": [{"kind": "distill"}], "data": {"prompts": "bos"}}


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(ROOT, page, "yaml")])
def test_examples_of_recipes_and_plans_load(page: str, tmp_path: Path) -> None:
    """A part of a recipe is made whole; then it is forecast for a model of 8 B."""
    shutil.copytree(ROOT / "recipes/configs", tmp_path / "configs")
    write_files(tmp_path)
    for block in snippets(ROOT, page, "yaml"):
        given = yaml.safe_load(block.text)
        path = tmp_path / "it.yaml"
        if set(given) <= set(EvalPlan.model_fields) - {"prompts"} or "ks" in given:
            path.write_text(block.text)
            assert load_plan(str(path)) != EvalPlan(), block
            continue
        for file in re.findall(r"file: ([\w.]+)", block.text):
            write = parquet.write_table if file.endswith(".parquet") else json_lines
            write(pyarrow.Table.from_pylist([ROW]), tmp_path / file)
        missing = {key: value for key, value in HEAD.items() if key not in given}
        text = replaced(block.text, {"MODEL_OR_FOLDER": "someone/model"})
        if "target" not in given or "config" not in given["target"]:
            text = re.sub(r"^target: .*\n", "", text, flags=re.MULTILINE)
            missing["target"] = {"model": "someone/model", "config": "configs/llama-3.1-8b-instruct.json"}
        path.write_text(text + "".join(yaml.safe_dump({key: value}) for key, value in missing.items()))
        for loaded in load(path):
            found = forecast_recipe(loaded, BUILT_IN["h200"])
            assert found is not None and found.seconds > 0, block


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(ROOT, page, "python")])
def test_examples_in_python_run(page: str, clone: Callable[[str], list[tuple[Command, Outcome]]]) -> None:
    if page in PYTHON:
        assert page in (ROOT / PYTHON[page]).read_text(encoding="utf-8")
        return
    clone(page)
    for block in snippets(ROOT, page, "python"):
        exec(compile(replaced(block.text, PLACES), f"{page}:{block.line}", "exec"), {})
