"""The shipped target and its drafter enlarged to a 7B shape: real acceptance at real cost, in bf16 and in int4.

Every row is labelled: the acceptance is the small model's, the cost the large one's (`factory/surgery/enlarge.py`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from decoder_pairs import TARGET, Pair, SkippedError
from decoder_passes import Row, row
from gpu_pairs import Bench, Item, given, in_order, longest, opened, prepared, recordings
from gpu_rounds import modelled
from gpu_text import written
from gpu_training import made_in
from transformers import PreTrainedModel

from eval import peers
from eval.measurement import acceptance
from eval.parity import audit, near_tie_bounds
from eval.peers import Ours, Timings
from eval.suites import Prompt, load_suite, prompt_sets
from factory.artifact import Artifact, artifact_folders
from factory.decoding.decoder import Limits
from factory.decoding.drafters import ModelDrafter
from factory.decoding.sampling import Sampling
from factory.models.loading import context_length, eos_token_ids, load_tokenizer
from factory.models.quantized import is_quantized, kernel_of, load_quantized
from factory.stages.gptq import Gptq
from factory.surgery.carving import copy_beside
from factory.surgery.enlarge import enlarge, enlarged_from, named_sizes, sizes_alike, sizes_of

ALONE = "the target alone"
KS = {"full": (2, 3, 4, 6, 8), "small": (2,)}
PROMPTS = {"full": (6, 12, 96), "small": (2, 2, 8)}  # to choose k by, fresh, new tokens
MODEL = "shipped target, enlarged"
SHAPE: dict[str, str] = {"full": "7b", "small": "tiny"}
GROUP: dict[str, Literal[32, 128]] = {"full": 128, "small": 32}  # that divides its widths
GREEDY = Sampling()


@dataclass
class Way:
    """One drafter at one precision."""

    words: str
    model: PreTrainedModel
    kernel: str | None = None


def enlarged(bench: Bench) -> Iterator[Row]:
    """bf16, then int4. Raises SkippedError without a drafter."""
    artifact = drafter_of(bench)
    dtype = getattr(torch, bench.dtype)
    small = artifact.load_target(str(TARGET), dtype, bench.device)
    guessing = artifact.load_model(dtype, bench.device)
    own = sizes_of(small.config.to_dict())
    sizes = named_sizes(SHAPE[bench.size], small.config.head_dim)
    target = enlarge(small, sizes)
    drafter = enlarge(guessing, sizes_alike(sizes_of(guessing.config.to_dict()), own, sizes))
    label = enlarged_from(target.config.to_dict())
    pair = pair_of(bench, target, {"bf16": drafter})
    reader = pair.reader()
    bench.facts |= {"drafter": artifact.name, "model": pair.facts(), "reader": reader.name, "why": reader.why}
    bench.facts["prepare_s"] = prepared(reader, (1, *(k + 1 for k in KS[bench.size])), longest(pair))
    half = "bf16" if bench.cuda else bench.dtype
    items: list[Item] = [
        (f"the drafter in {half}", 0, lambda: judged(bench, pair, Way("bf16", drafter))),
        ("the drafter in int4", 20 if bench.full else 0, lambda: in_four_bits(bench, pair, small, drafter)),
    ]
    for made in in_order(bench, items):
        yield {**made, "enlarged": label}
    bench.facts["recordings"] = recordings(reader)


def drafter_of(bench: Bench) -> Artifact:
    """The artifact that was given, else the one that the part `training` made: unquantised. Raises SkippedError."""
    folders = bench.drafters or artifact_folders(made_in(bench)) if made_in(bench).is_dir() else bench.drafters
    fitting = [artifact for artifact in map(Artifact.open, folders) if not is_quantized(artifact.model_folder)]
    if not fitting:
        raise SkippedError("no drafter: the part `training` makes it, or --drafter names an artifact")
    return next((artifact for artifact in fitting if not artifact.name.endswith("--raw")), fitting[0])


def pair_of(bench: Bench, target: PreTrainedModel, drafters: dict[str, PreTrainedModel]) -> Pair:
    """With prompts of the suite `code`."""
    choose, fresh, new_tokens = PROMPTS[bench.size]
    tokenizer, context = load_tokenizer(TARGET), context_length(target)
    room = context - new_tokens - 1 - max(KS[bench.size]) - 1
    sets = prompt_sets(load_suite("code"), lambda text: tokenizer(text)["input_ids"], room, choose, fresh)
    limits = Limits(new_tokens, eos_token_ids(target), context)
    settings = replace(bench.settings, big_prompts=choose)
    name = MODEL if bench.full else f"{MODEL}, small"
    return Pair(name, target, drafters, sets.choose, sets.confirm, limits, settings, dtype=bench.dtype, opened=opened)


def judged(bench: Bench, pair: Pair, way: Way) -> Iterator[Row]:
    """The best k on some prompts, then measured on others; its outputs audited; then as modelled."""
    drafter = ModelDrafter(pair.reader(way.words), way.words)
    ks = KS[bench.size]
    drafter.prepare(1, ks, longest(pair), Sampling())
    tried = {k: peers.faster(*arm_and_base(contest(pair, drafter, [k], pair.timed), k)).value for k in ks}
    k = max(ks, key=lambda k: tried[k])
    found = contest(pair, drafter, [k], pair.fresh)
    arm, base = arm_and_base(found, k)
    bound = near_tie_bounds(pair.reader(), base.outputs, [k])[k]
    same = audit(pair.reader(), base.outputs, arm.outputs, bound, eos=pair.limits.eos)
    yield row(
        f"speedup, {way.words} drafter, k = {k}, greedy",
        pair.name,
        peers.faster(arm, base),
        (">=", 2.4),
        alpha=acceptance(arm.rounds).alpha,
        baseline_tokens_per_s=base.tokens_per_s,
        drafted_tokens_per_s=arm.tokens_per_s,
        outputs_differ=same.divergences,
        near_ties=same.near_ties,
        audit="passed" if same.passed else "**failed**",
        tried=", ".join(f"k {one}: {value:.2f}" for one, value in tried.items()),
        **({"kernel": way.kernel} if way.kernel else {}),
    )
    yield modelled(replace(pair, prompts=pair.fresh, settings=replace(pair.settings, k=k)), way.words, base, arm, k)
    drafter.prepare(1, [k], longest(pair), Sampling(temperature=1.0))
    arm, base = arm_and_base(contest(pair, drafter, [k], pair.fresh, Sampling(temperature=1.0)), k)
    yield row(
        f"at temperature 1, {way.words} drafter, k = {k}",
        pair.name,
        peers.faster(arm, base),
        alpha=acceptance(arm.rounds).alpha,
        baseline_tokens_per_s=base.tokens_per_s,
    )


def contest(
    pair: Pair, drafter: ModelDrafter, ks: Sequence[int], prompts: Sequence[Prompt], sampling: Sampling = GREEDY
) -> dict[str, Timings]:
    """The target alone and with the drafter at each k, interleaved."""
    field = [Ours(ALONE, pair.match(None, 1), pair.reader())]
    field += [Ours(f"k = {k}", pair.match(None, k), pair.reader(), drafter) for k in ks]
    return peers.contest(field, prompts, sampling, repeats=pair.settings.repeats, seed=pair.settings.seed)


def arm_and_base(found: dict[str, Timings], k: int) -> tuple[Timings, Timings]:
    """Of a contest."""
    return found[f"k = {k}"], found[ALONE]


def in_four_bits(bench: Bench, pair: Pair, small: PreTrainedModel, drafter: PreTrainedModel) -> Iterator[Row]:
    """The enlarged drafter rounded by GPTQ on text of the target's, and judged likewise."""
    raw, made = bench.work / "enlarged-drafter", bench.work / "enlarged-drafter-4bit"
    for folder in (raw, made):
        shutil.rmtree(folder, ignore_errors=True)
    drafter.save_pretrained(raw)
    copy_beside(TARGET, raw)
    text = written(bench, opened(small))
    stage = Gptq(kind="gptq", bits=4, group_size=GROUP[bench.size], samples=len(text))
    bench.facts["gptq"] = stage.quantize(raw, made, given(text, bench.work))
    model = load_quantized(made, dtype=getattr(torch, bench.dtype), device=bench.device)
    pair.drafters["int4"] = model
    yield from judged(bench, pair, Way("int4", model, kernel_of(model)))
