"""How a published drafter is run: with transformers, vLLM, SGLang, llama.cpp, and here.

The flags are those that these programs documented in November 2026: vLLM's `draft_model` method, SGLang's STANDALONE
algorithm (k steps of one token each, so that k + 1 tokens are verified); llama.cpp's `draft-simple` is known from
quotations of its help alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

TARGET = "TARGET"  # stands in commands for a target that has no name on the Hub


@dataclass(frozen=True)
class Recommended:
    """What is recommended of a drafter. `settled`: its generation_config.json carries k; `stored`: weight_format."""

    name: str
    base_model: str | None
    revision: str | None
    k: int
    settled: bool
    stored: dict[str, Any]


def how_to_run(it: Recommended) -> list[str]:
    """That part of the card, in lines."""
    name, base_model, k, stored = it.name, it.base_model, it.k, it.stored
    target = base_model or TARGET
    unnamed = [] if base_model else [f"`{TARGET}` stands for the folder of the target, which is not on the Hub.", ""]
    return [
        *unnamed,
        *_transformers(it, target),
        "vLLM:",
        "",
        "```sh",
        f"vllm serve {target} \\",
        f'  --speculative-config \'{{"method": "draft_model", "model": "{name}", "num_speculative_tokens": {k}}}\'',
        "```",
        "",
        "SGLang:",
        "",
        "```sh",
        f"python -m sglang.launch_server --model-path {target} \\",
        f"  --speculative-algorithm STANDALONE --speculative-draft-model-path {name} \\",
        f"  --speculative-num-steps {k} --speculative-eagle-topk 1 --speculative-num-draft-tokens {k + 1}",
        "```",
        "",
        *_llama_cpp(name, k, stored),
        "The flags of vLLM and SGLang are from their documents of November 2026, those of llama.cpp from what others "
        "quote of its help. This drafter was not run with them"
        + (", nor its GPTQ weights with their kernels" if stored["format"] == "gptq" else "")
        + ".",
        "",
        "drafter-factory, which made and measured it:",
        "",
        "```sh",
        f"factory pull {name}    # a folder with everything that is here, verified",
        f"factory eval {name}{'' if base_model else f' --target {TARGET}'}    # on your machine, beside these figures",
        "```",
    ]


def _transformers(it: Recommended, target: str) -> list[str]:
    name, stored = it.name, it.stored
    pinned = f', revision="{it.revision}"' if it.revision else ""
    settings = [
        f"drafter.generation_config.num_assistant_tokens = {it.k}",
        'drafter.generation_config.num_assistant_tokens_schedule = "constant"',
        "drafter.generation_config.assistant_confidence_threshold = 0",
    ]
    said = [
        f"`generation_config.json` here says `num_assistant_tokens = {it.k}`, schedule `constant`, confidence "
        "threshold 0: transformers drafts as it was measured.",
        "",
    ]
    if stored["loader"] == "transformers":
        imports = ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
        drafter = f'drafter = AutoModelForCausalLM.from_pretrained("{name}", dtype="auto")'
        head = ["transformers" + (", with gptqmodel and optimum installed:" if stored["format"] == "gptq" else ":"), ""]
    else:
        imports = ["from gptqmodel import GPTQModel", "from transformers import AutoModelForCausalLM, AutoTokenizer"]
        drafter = f'drafter = GPTQModel.load("{name}").model'
        head = [
            f"**Stock transformers cannot load it**: {stored['why_loader']}. It loads through gptqmodel only:",
            "",
        ]
    return [
        *head,
        "```python",
        *imports,
        "",
        f'target = AutoModelForCausalLM.from_pretrained("{target}"{pinned}, dtype="auto")',
        drafter,
        *([] if it.settled else settings),
        f'tokenizer = AutoTokenizer.from_pretrained("{target}"{pinned})',
        'prompt = tokenizer("def main():", return_tensors="pt")',
        "tokens = target.generate(**prompt, assistant_model=drafter, max_new_tokens=64)",
        "print(tokenizer.decode(tokens[0], skip_special_tokens=True))",
        "```",
        "",
        *(said if it.settled else []),
    ]


def _llama_cpp(name: str, k: int, stored: dict[str, Any]) -> list[str]:
    if stored["format"] == "gptq":
        return ["llama.cpp: its converter has not been tried on these GPTQ weights.", ""]
    return [
        "llama.cpp, both models converted first:",
        "",
        "```sh",
        f"hf download {name} --local-dir drafter",
        "python convert_hf_to_gguf.py drafter --outfile drafter.gguf",
        f"llama-server -m target.gguf -md drafter.gguf --spec-type draft-simple --spec-draft-n-max {k}",
        "```",
        "",
    ]
