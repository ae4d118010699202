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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from eval.parity import audit, near_tie_bounds
from eval.suites import load_suite, prompt_sets
from eval.verdict.stats import RESAMPLES, expanded_tail, speedup
from factory import provenance
from factory.anatomy.families import shape_from_config
from factory.decoding.decoder import Generation, Limits, autoregressive, speculative
from factory.decoding.drafters import ModelDrafter
from factory.decoding.eager import EagerReader
from factory.decoding.sampling import Noise, Sampling
from factory.models import loading as models
from factory.models.quantized import kernel_of
from factory.stages.drop_layers import DropLayers
from factory.surgery.carving import carve_module

TARGET = Path("recipes/demo/target")
GPTQ = Path("artifacts/moves/gptq--bits4/model")
KEPT = Path(__file__).with_name("published-moves-cpu.json")
KS = (5, 10)
LENGTHS = (20, 50, 100)
BLOCK = 5  # theirs, both ways
NF4_BLOCK = 64
NF4_LEVELS = (  # of bitsandbytes, as QLoRA (arXiv 2305.14314) defines them
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
    *(0.7229568362236023, 1.0),
)
GREEDY = Sampling()

ZEROS = "Zeros were written into tensors of full size: no byte and no operation less"
ONE_PROMPT = "one prompt a category, one seed, no interval"
BY_ONE = "acceptance looked up the previous token in the next position's distributions"


@dataclass(frozen=True)
class Move:
    """One way of making a drafter, and what was published for it."""

    name: str
    make: Callable[[], PreTrainedModel]
    published: dict[int, str]  # k -> mean accepted at lengths 20 / 50 / 100
    wrong: str  # with the published figure, in one sentence
    emulated: bool = False  # rounded and kept in float32: its acceptance is true, its speed is not


def copied() -> PreTrainedModel:
    """The target once more, read from disk: nothing is shared."""
    return models.load_model(TARGET, dtype=torch.float32)


def layer_matrices(model: PreTrainedModel) -> list[torch.Tensor]:
    """The weights of all linear modules of all layers."""
    return [weight for name, weight in model.named_parameters() if ".layers." in name and weight.dim() == 2]


@torch.no_grad()
def zeroed(density: float, *, everything: bool = False) -> PreTrainedModel:
    """All but the largest `density` of each layer matrix is 0; `everything`: of norms and embedding too."""
    model = copied()
    for weight in model.parameters() if everything else layer_matrices(model):
        flat = weight.abs().flatten()
        kept = torch.zeros_like(flat).scatter_(0, flat.topk(max(1, round(density * flat.numel()))).indices, 1.0)
        weight.mul_(kept.view_as(weight))
    return model


@torch.no_grad()
def blocks_zeroed(density: float) -> PreTrainedModel:
    """Of each layer matrix the 5 x 5 blocks of smallest sum are 0; the rows and columns left over stay, as theirs."""
    model = copied()
    for weight in layer_matrices(model):
        rows, columns = (side // BLOCK for side in weight.shape)
        part = weight[: rows * BLOCK, : columns * BLOCK]
        view = part.unflatten(1, (columns, BLOCK)).unflatten(0, (rows, BLOCK))  # [R, b, C, b]
        score = view.abs().sum((1, 3)).flatten()
        kept = torch.zeros_like(score).scatter_(0, score.topk(round(density * score.numel())).indices, 1.0)
        part.mul_(kept.view(rows, 1, columns, 1).expand(rows, BLOCK, columns, BLOCK).reshape(part.shape))
    return model


def layers_dropped(share: float) -> PreTrainedModel:
    """`share` of the layers, spread evenly over the depth."""
    target = copied()
    edit = DropLayers(kind="drop_layers", keep=share).decide(shape_from_config(target.config.to_dict()), {})
    return carve_module(target, edit)


@torch.no_grad()
def nf4(model: PreTrainedModel) -> PreTrainedModel:
    """Every layer matrix to the nearest of 16 levels times the largest of its block of 64, and back."""
    levels = torch.tensor(NF4_LEVELS)
    edges = (levels[1:] + levels[:-1]) / 2
    for weight in layer_matrices(model):
        blocks = weight.view(-1, NF4_BLOCK)
        scale = blocks.abs().amax(1, keepdim=True).clamp(min=1e-12)
        blocks.copy_(levels[torch.bucketize(blocks / scale, edges)] * scale)
    return model


@torch.no_grad()
def int8(model: PreTrainedModel) -> PreTrainedModel:
    """Every layer matrix to 8 bits, one scale for each output, and back."""
    for weight in layer_matrices(model):
        scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        weight.copy_((weight / scale).round() * scale)
    return model


def gptq() -> PreTrainedModel:
    """What the stage `gptq` made of the whole target."""
    return models.load_model(GPTQ, dtype=torch.float32)


def moves() -> list[Move]:
    """In their order. Published figures are presumably GPT-2's, which is not said, but for those of Llama 2."""
    return [
        Move(
            "unstructured zeros, density .25",
            lambda: zeroed(0.25),
            {5: "2.571 / 3.25 / 2.731", 10: "3.182 / 7.5 / 3"},
            f"{ZEROS}, so whatever is accepted a draft step costs as much as a target step; {BY_ONE}; {ONE_PROMPT}.",
        ),
        Move(
            "the same of every tensor, norms and embedding too",
            lambda: zeroed(0.25, everything=True),
            {5: "2.571 / 3.25 / 2.731", 10: "3.182 / 7.5 / 3"},
            "This is what the released code does: zeroing three quarters of a norm's weights cuts those channels out.",
        ),
        Move(
            "unstructured zeros, density .5",
            lambda: zeroed(0.5),
            {},
            "No figure for it alone was published.",
        ),
        Move(
            "structured zeros, 5 x 5 blocks, density .25",
            lambda: blocks_zeroed(0.25),
            {5: "2.538 / 3.25 / 2.097", 10: "1.722 / 7.5 / 1.538"},
            f"{ZEROS}, and no kernel that would skip a block; {BY_ONE}.",
        ),
        Move(
            "1/2 of the layers, not healed",
            lambda: layers_dropped(0.5),
            {5: "1.3 / 0.545 / 1.182", 10: "1.35 / 2 / 2.84"},
            "The rule keeps more layers than asked for where their number does not divide; no distillation follows, "
            "although that is what makes such a drafter; Llama's branch is empty.",
        ),
        Move(
            "1/4 of the layers, not healed",
            lambda: layers_dropped(0.25),
            {5: "0.704 / 0.778 / 0.627", 10: "0.808 / 1.286 / 0.846"},
            "As the row above; the conclusion that dropping layers does not pay was drawn without healing.",
        ),
        Move(
            "half precision (bfloat16)",
            lambda: models.load_model(TARGET, dtype=torch.bfloat16),
            {5: "5 / 5 / ~4.5", 10: "8.6 / 7 / 9.4"},
            "The function converts a copy and returns the original: as released, drafter and target are one model, and "
            "figures below k must come from another version.",
        ),
        Move(
            "GPTQ, 4 bits",
            gptq,
            {5: "5 / 5 / 5 (Llama 2)", 10: "10 / 10 / 10 (Llama 2)"},
            "The library quantises in place and was given the target itself: both became one object; all is accepted.",
        ),
        Move(
            "NF4, emulated",
            lambda: nf4(copied()),
            {
                5: "2.769 / 5 / 3.348; Llama 2: 2.76 / 2.23 / 2.39",
                10: "6.143 / 4.33 / 3.8; Llama 2: 3.8 / 3.16 / 2.7",
            },
            f"{BY_ONE[0].upper()}{BY_ONE[1:]}; {ONE_PROMPT}: at k = 5 the middle length accepts more than both others.",
            emulated=True,
        ),
        Move(
            "density .5, then 8 bits, emulated",
            lambda: int8(zeroed(0.5)),
            {},
            "Published as a share at length 240: 0.0 (8-bit drafter, 32-bit target), 0.4 (16/32), 0 (8/16); our alpha "
            f"stands beside. {BY_ONE[0].upper()}{BY_ONE[1:]}.",
            emulated=True,
        ),
        Move(
            "the target itself, a bit-identical copy",
            copied,
            {},
            "The control, what their half and GPTQ rows really measured: all is accepted and nothing is gained.",
        ),
    ]


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


def below(value: float, top: int, digits: int) -> str:
    """With as many digits as it takes not to look like `top`, which it is not."""
    while float(f"{value:.{digits}f}") >= top:
        digits += 1
    return f"{value:.{digits}f}"


def cell(one: dict[str, Any], row: dict[str, Any], k: int) -> str:
    """A mean and its interval; where nothing was rejected, k only for a bit-identical drafter, else what is sure."""
    if one["mean"] < k:
        return f"{below(one['mean'], k, 2)} ({one['low']:.2f} to {one['high']:.2f})"
    if row["bit_identical"]:
        return f"{k} (identical)"
    alpha = 1 - 3 / one["accepted"]  # the rule of three: 95 % sure after so many without one rejection
    return f"> {sum(alpha**place for place in range(1, k + 1)):.2f} (none of {one['accepted']:,} rejected)"


def show(kept: dict[str, Any]) -> None:
    """A table for each k, then what was wrong, then the hardware."""
    for k in KS:
        print(f"Mean accepted of k = {k}, greedy, 95 % interval over prompts; published: at lengths 20 / 50 / 100.\n")
        print("| drafter | published | 20 | 50 | 100 | alpha | wall clock, plain / speculative | same output |")
        print("| --- " * 8 + "|")
        for row in kept["rows"]:
            counts, ratio = row["accepted"][str(k)], row["wall_clock"][str(k)]
            lengths = [counts["by_length"].get(str(length)) for length in LENGTHS]
            cells = [cell(one, row, k) if one else "" for one in lengths]
            low = "" if ratio["low"] is None else f" ({ratio['low']:.2f} to {ratio['high']:.2f})"
            timed = f"{ratio['value']:.2f}x{low}" + (", as float32" if row["emulated"] else "")
            print(
                f"| {row['move']} | {row['published'].get(str(k), '')} | {' | '.join(cells)} | {_alpha(counts, row)} "
                f"| {timed} | {'yes' if ratio['same_output'] else 'NO'} |"
            )
        print()
    print("| drafter | MB in memory | zeros | kernel | what was wrong with the published figure |")
    print("| --- " * 5 + "|")
    for row in kept["rows"]:
        zeros = "" if row["zeros"] is None else f"{row['zeros']:.0%}"
        print(f"| {row['move']} | {row['weight_bytes'] / (1 << 20):.1f} | {zeros} | {row['kernel']} | {row['wrong']} |")
    half = next((row for row in kept["rows"] if row["move"].startswith("half")), None)
    if half is not None:
        same = (
            "are the target's own, which is stored in bfloat16: only its arithmetic is coarser"
            if half["same_weights"]
            else "are rounded"
        )
        print(
            f"\nThe half-precision drafter's weights {same}, so it truly accepts nearly all. By itself that can bring "
            "no speedup: a draft step costs a whole step of a target that is served in half precision too, as on a "
            "GPU, so k + 1 tokens cost k + 1 steps, 1x at best; of a target kept in float32, where only bytes count, "
            "half a step, so k + 1 tokens cost k / 2 + 1 steps, under 2x, which the bfloat16 model reaches alone."
        )
    settings, hardware = kept["settings"], kept["hardware"]
    print(
        f"\n{hardware['cpu']}, {hardware['cores']} cores, {hardware['threads']} threads; {kept['dtype']}, reader "
        f"eager; torch {kept['versions']['torch']}, transformers {kept['versions']['transformers']}; suite code, "
        f"{settings['prompts']} prompts of {settings['tokens']} new tokens for acceptance; wall clock on "
        f"{settings['timed_prompts']} prompts of {settings['timed_tokens']} new tokens, batch 1, {settings['repeats']} "
        "repeats, interleaved. Published figures as published: CMU 15-780, Raje, Gangireddy, Akinwande, Speculative "
        "Decoding Model Generation; read off its figures, hardware not stated."
    )


def _alpha(counts: dict[str, Any], row: dict[str, Any]) -> str:
    examined = counts["accepted"] + counts["rejected"]
    if not examined:
        return ""
    if not counts["rejected"]:
        return "1 (identical)" if row["bit_identical"] else f"> {1 - 3 / examined:.3f}"
    return below(counts["accepted"] / examined, 1, 3)


def main() -> None:
    """Measure or read, then print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", help="`run`, or the JSON of an earlier run")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--timed-prompts", type=int, default=6)
    parser.add_argument("--timed-tokens", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--to", type=Path, default=KEPT, help="where the JSON goes")
    arguments = parser.parse_args()
    if arguments.source == "run":
        kept = run(arguments)
        arguments.to.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        kept = json.loads(arguments.to.read_text(encoding="utf-8"))
    else:
        kept = json.loads(Path(arguments.source).read_text(encoding="utf-8"))
    show(kept)


if __name__ == "__main__":
    main()
