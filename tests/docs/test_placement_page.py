"""docs/placement.md names every key and family; its plans and commands are tried by test_commands.py."""

from pathlib import Path

from transformers import AutoConfig

PAGE = (Path(__file__).resolve().parents[2] / "docs/placement.md").read_text(encoding="utf-8")
KEYS = ("device_map", "max_memory", "tensor_parallel", "drafter_device")
NAMES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gpt_neox": "GPT-NeoX"}


def test_the_page_names_every_key_and_every_family_that_can_be_divided() -> None:
    assert [key for key in KEYS if f"| `{key}` |" not in PAGE] == []
    divided = {
        name for name in (*NAMES, "gpt2", "opt") if getattr(AutoConfig.for_model(name), "base_model_tp_plan", None)
    }
    assert divided == set(NAMES)
    assert "Llama,\nMistral, Qwen2, Qwen3 and GPT-NeoX have one, GPT-2 and OPT have none" in PAGE
