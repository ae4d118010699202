"""Every plan of docs/placement.md loads, its commands are the command line's, and it names every key and family."""

import re
import shlex
from pathlib import Path

import pytest
from transformers import AutoConfig
from typer.testing import CliRunner

from eval.plan import EvalPlan, load_plan
from factory import cli

PAGE = (Path(__file__).resolve().parents[2] / "docs/placement.md").read_text(encoding="utf-8")
KEYS = ("device_map", "max_memory", "tensor_parallel", "drafter_device")
NAMES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gpt_neox": "GPT-NeoX"}


@pytest.mark.parametrize("snippet", re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
def test_a_plan_loads(tmp_path: Path, snippet: str) -> None:
    (tmp_path / "plan.yaml").write_text(snippet)
    plan = load_plan(tmp_path / "plan.yaml")
    assert any(getattr(plan, key) != EvalPlan.model_fields[key].default for key in KEYS)


def test_a_command_has_the_options_that_there_are() -> None:
    lines = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    assert len(lines) == 4
    known = CliRunner().invoke(cli.app, ["eval", "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
    for line in lines:
        words = shlex.split(line)
        own = words[words.index("factory") + 1 :]
        assert own[0] == "eval"
        assert [word for word in own if word.startswith("--") and word not in known] == []


def test_the_page_names_every_key_and_every_family_that_can_be_divided() -> None:
    assert [key for key in KEYS if f"| `{key}` |" not in PAGE] == []
    divided = {
        name for name in (*NAMES, "gpt2", "opt") if getattr(AutoConfig.for_model(name), "base_model_tp_plan", None)
    }
    assert divided == set(NAMES)
    assert "Llama,\nMistral, Qwen2, Qwen3 and GPT-NeoX have one, GPT-2 and OPT have none" in PAGE
