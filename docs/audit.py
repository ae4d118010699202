"""Check a tokens.jsonl with transformers alone: is each greedy output the target's own greedy output?

    python docs/audit.py artifacts/demo/tokens.jsonl recipes/demo/target

Imports nothing of this project. Teacher-forces every distinct greedy output in float64 and compares
it, token by token, with the argmax of the target's logits. Exit code 1 where one differs. Knows no
penalties: outputs of a plan that sets some are not the target's bare argmax, and differ here.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


def main() -> int:
    """Count and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tokens", type=Path, help="the tokens.jsonl of a `factory eval`")
    parser.add_argument("target", help="the target's folder or name on the Hub")
    arguments = parser.parse_args()
    try:
        lines = [json.loads(line) for line in arguments.tokens.read_text(encoding="utf-8").splitlines()]
        greedy = {(tuple(line["prompt_ids"]), tuple(line["output_ids"])) for line in lines if line["temperature"] == 0}
    except OSError as error:
        parser.error(f"{arguments.tokens}: {error.strerror}; name the tokens.jsonl of a `factory eval`")
    except (ValueError, LookupError, TypeError, RecursionError):
        parser.error(f"{arguments.tokens}: not the tokens.jsonl that `factory eval` writes; run it again")
    try:
        model = AutoModelForCausalLM.from_pretrained(arguments.target, dtype=torch.float64)
    except (OSError, ValueError) as error:
        first_line = str(error).splitlines()[0].rstrip(".")
        parser.error(f"{arguments.target}: no model that can be loaded ({first_line}); name its folder")
    differing = 0
    for prompt, output in sorted(greedy):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *output]]), use_cache=False).logits[0]
        own = logits[len(prompt) - 1 : -1].argmax(-1).tolist()
        if own != list(output):
            place = next(i for i, (a, b) in enumerate(zip(own, output, strict=True)) if a != b)
            gap = float(logits[len(prompt) - 1 + place].max() - logits[len(prompt) - 1 + place, output[place]])
            print(f"prompt {list(prompt)[:8]}... differs at new token {place}, logit gap {gap:.2e}")
            differing += 1
    if len({prompt for prompt, _ in greedy}) < len(greedy):
        print("a prompt has two different greedy outputs")
        differing += 1
    rows = sum(line["temperature"] == 0 for line in lines)
    print(f"{rows} greedy outputs, {len(greedy)} distinct; {differing} differ from the target's own greedy choice")
    return 1 if differing else 0


if __name__ == "__main__":
    raise SystemExit(main())
