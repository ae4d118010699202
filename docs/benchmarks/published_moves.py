"""The five moves of "Speculative Decoding Model Generation" (CMU 15-780), measured rightly.

    factory build docs/benchmarks/moves/gptq.yaml --out artifacts/moves
    python docs/benchmarks/published_moves.py run        # writes published-moves-cpu.json here, prints the tables
    python docs/benchmarks/published_moves.py docs/benchmarks/published-moves-cpu.json        # prints them again

The project is by Raje, Gangireddy and Akinwande. No drafter here is trained: as theirs. Metric as theirs, mean
accepted tokens a round, greedy, k = 5 and 10, over the rounds that begin within the first 20, 50 and 100 new tokens
and have room for k guesses. Prompts go through the decoder as one batch for that, which changes no acceptance but
by rounding; the wall-clock ratio is taken one prompt at a time, interleaved with plain decoding. Every drafter is a
copy that shares no memory with the target, and the target's fingerprint is compared before and after each.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arguments import print_run, read_run, writable
from published_drafters import GPTQ, TARGET, copied, layer_matrices, moves
from published_table import KS, LENGTHS, show
from transformers import PreTrainedModel

from eval.parity import audit, near_tie_bounds
from eval.suites import load_suite, prompt_sets
from eval.verdict.stats import RESAMPLES, expanded_tail, speedup
from factory import provenance
from factory.decoding.decoder import Generation, Limits, autoregressive, speculative
from factory.decoding.drafters import ModelDrafter
from factory.decoding.eager import EagerReader
from factory.decoding.sampling import Noise, Sampling
from factory.models import loading as models
from factory.models.quantized import kernel_of

KEPT = Path(__file__).with_name("published-moves-cpu.json")
GREEDY = Sampling()


@torch.no_grad()
def require_own_memory(target: PreTrainedModel, drafter: PreTrainedModel) -> None:
    """Raises SystemExit where a drafter's tensor is the target's."""
    held = {tensor.data_ptr() for tensor in target.state_dict().values()}
    shared = [name for name, tensor in drafter.state_dict().items() if tensor.data_ptr() in held]
    if shared:
        raise SystemExit(f"the drafter shares {shared[:3]} with the target: no figure of it is true")


def full_rounds(output: Generation, k: int, most: int) -> list[tuple[int, int]]:
    """(tokens written before it, accepted) of each round that had room for k guesses."""
    found, written = [], 1
    for accepted in output.accepted:
        if written + k + 1 <= most:
            found.append((written, accepted))
        written += accepted + 1
    return found


def mean_accepted(by_prompt: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Total accepted / rounds, with a bootstrap interval over prompts."""
    table = np.array([[sum(rounds), len(rounds)] for rounds in by_prompt if rounds], dtype=float)  # [N, 2]
    count = len(table)
    weights = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    totals = weights @ table
    tail = expanded_tail(count)
    low, high = np.quantile(totals[:, 0] / totals[:, 1], [tail, 1 - tail])
    accepted, rounds = table.sum(axis=0)
    return {"mean": float(accepted / rounds), "low": float(low), "high": float(high), "accepted": int(accepted)}


def accepted_by_length(outputs: Sequence[Generation], k: int, most: int) -> dict[str, Any]:
    """Mean accepted by length, and counts over all."""
    rounds = [full_rounds(output, k, most) for output in outputs]
    by_length = {
        str(length): mean_accepted([[accepted for begun, accepted in one if begun < length] for one in rounds])
        for length in LENGTHS
        if length <= most
    }
    accepted = sum(sum(output.accepted) for output in outputs)
    rejected = sum(a < p for output in outputs for a, p in zip(output.accepted, output.proposed, strict=True))
    return {"by_length": by_length, "accepted": accepted, "rejected": rejected}


class Bench:
    """The target, prompts, and both measurements."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.target = copied()
        self.reader = EagerReader(self.target)
        self.fingerprint = models.fingerprint(self.target)
        tokenizer = models.load_tokenizer(TARGET)
        context = models.context_length(self.target)
        room = context - arguments.tokens - 1
        suite = load_suite("code")
        sets = prompt_sets(suite, lambda text: tokenizer(text)["input_ids"], room, arguments.prompts, 2)
        self.prompts = [prompt.ids for prompt in sets.choose]
        self.timed_prompts = self.prompts[: arguments.timed_prompts]
        eos = models.eos_token_ids(self.target)
        self.limits = Limits(arguments.tokens, eos, context)
        self.timed_limits = Limits(arguments.timed_tokens, eos, context)
        self.repeats = arguments.repeats

    def batched(self, drafter: ModelDrafter, k: int) -> list[Generation]:
        """All prompts at once."""
        noise = Noise(0, range(len(self.prompts)))
        return speculative(self.reader, drafter, self.prompts, k, GREEDY, self.limits, noise)

    def timed(self, drafters: dict[str, ModelDrafter]) -> dict[str, Any]:
        """Wall-clock ratio of each (drafter, k) to plain decoding, one prompt at a time, all in turn."""
        arms: list[tuple[str, int]] = [("", 0), *((name, k) for name in drafters for k in KS)]
        seconds: dict[tuple[str, int], list[list[float]]] = {
            arm: [[0.0, 0.0] for _ in self.timed_prompts] for arm in arms
        }
        outputs: dict[tuple[str, int], list[Generation]] = {arm: [] for arm in arms}
        for arm in arms:
            self._once(drafters, arm, self.timed_prompts[0])
        for repeat in range(self.repeats):
            for place, prompt in enumerate(self.timed_prompts):
                first = (place + repeat) % len(arms)
                for arm in (*arms[first:], *arms[:first]):
                    begun_s = time.perf_counter()
                    output = self._once(drafters, arm, prompt)
                    seconds[arm][place][0] += time.perf_counter() - begun_s
                    seconds[arm][place][1] += len(output.tokens)
                    if repeat == 0:
                        outputs[arm].append(output)
        base = arms[0]
        bounds = near_tie_bounds(self.reader, outputs[base], KS)
        found: dict[str, Any] = {name: {} for name in drafters}
        for name, k in arms[1:]:
            quads = [(*seconds[base][place], *seconds[name, k][place]) for place in range(len(self.timed_prompts))]
            ratio = speedup(quads)
            same = audit(self.reader, outputs[base], outputs[name, k], bounds[k])
            interval = {"value": ratio.value, "low": ratio.low, "high": ratio.high}
            found[name][str(k)] = {**interval, "same_output": same.passed}
        return found

    def _once(self, drafters: dict[str, ModelDrafter], arm: tuple[str, int], prompt: list[int]) -> Generation:
        name, k = arm
        rest = (GREEDY, self.timed_limits, Noise(0, [0]))
        if not k:
            return autoregressive(self.reader, [prompt], *rest)[0]
        return speculative(self.reader, drafters[name], [prompt], k, *rest)[0]


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure every move. The JSON."""
    if not (GPTQ / "config.json").is_file():
        raise SystemExit(f"{GPTQ} is missing: factory build docs/benchmarks/moves/gptq.yaml --out artifacts/moves")
    began_s = time.monotonic()
    bench = Bench(arguments)
    rows, drafters = [], {}
    for move in moves():
        model = move.make()
        require_own_memory(bench.target, model)
        drafters[move.name] = ModelDrafter(EagerReader(model), move.name)
        measured = {str(k): accepted_by_length(bench.batched(drafters[move.name], k), k, arguments.tokens) for k in KS}
        if models.fingerprint(bench.target) != bench.fingerprint:
            raise SystemExit(f"{move.name} changed the target: no figure is true; nothing is written")
        rows.append(
            {
                "move": move.name,
                "published": {str(k): said for k, said in move.published.items()},
                "wrong": move.wrong,
                "emulated": move.emulated,
                "bit_identical": models.fingerprint(model) == bench.fingerprint,
                "same_weights": _same_weights(model, bench.target),
                "weight_bytes": int(model.get_memory_footprint()),
                "zeros": _share_of_zeros(model),
                "kernel": kernel_of(model) or "torch",
                "accepted": measured,
            }
        )
        print(f"{time.monotonic() - began_s:6.0f} s  {move.name}", file=sys.stderr, flush=True)
    ratios = bench.timed(drafters)
    for row in rows:
        row["wall_clock"] = ratios[row["move"]]
    if models.fingerprint(bench.target) != bench.fingerprint:
        raise SystemExit("timing changed the target: no figure is true; nothing is written")
    settings = ("prompts", "tokens", "timed_prompts", "timed_tokens", "repeats")
    return {
        "target": str(TARGET),
        "dtype": "float32",
        "settings": {key: getattr(arguments, key) for key in settings} | {"ks": KS, "prompts": len(bench.prompts)},
        "seconds": round(time.monotonic() - began_s),
        "rows": rows,
        "hardware": provenance.hardware("cpu"),
        "versions": provenance.versions(),
        "git": provenance.git_sha(),
    }


def _same_weights(drafter: PreTrainedModel, target: PreTrainedModel) -> bool:
    """Whether the drafter's weights in the target's dtype are the target's: then only its arithmetic is coarser."""
    ours, theirs = drafter.state_dict(), target.state_dict()
    if ours.keys() != theirs.keys():
        return False
    return all(torch.equal(ours[name].to(tensor.dtype), tensor) for name, tensor in theirs.items())


def _share_of_zeros(model: PreTrainedModel) -> float | None:
    """Of the layers' matrices; None where they are packed."""
    held = layer_matrices(model)
    zeros = sum(int((weight == 0).sum()) for weight in held)
    return zeros / sum(weight.numel() for weight in held) if held else None


def main() -> None:
    """Measure or read, then print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", help="`run`, or the JSON of an earlier run")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--timed-prompts", type=int, default=6)
    parser.add_argument("--timed-tokens", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--to", type=writable, default=KEPT, help="where the JSON goes")
    arguments = parser.parse_args()
    if arguments.source == "run":
        kept = run(arguments)
        arguments.to.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        kept = json.loads(arguments.to.read_text(encoding="utf-8"))
    else:
        kept = read_run(parser, arguments.source)
    print_run(parser, show, kept)


if __name__ == "__main__":
    main()
