"""gpt-fast (meta-pytorch/gpt-fast) on the 7B shape beside ours, from a checkout that is given: nothing of it lies here.

Its model, its decoding loop and its compilation are its own (`torch.compile(decode_one_token, mode="reduce-overhead",
fullgraph=True)`, as its generate.py does with --compile), its weights random and of the same sizes. It samples, and has
no greedy way: both sides sample as its command does by default. Written for its revision 6ecad9b.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from decoder_pairs import Pair, SkippedError
from decoder_passes import Row, row
from gpu_pairs import Bench, first_line, longest, prepared, seven

from eval import peers
from eval.suites import Prompt
from eval.timing.bench import Stopwatch
from factory.decoding.batch import Generation
from factory.decoding.sampling import Sampling

THEIRS = "gpt-fast"
DEFAULTS: dict[str, Any] = {"temperature": 0.8, "top_k": 200}  # of its command line
SAMPLED = Sampling(**DEFAULTS)


def gpt_fast(bench: Bench) -> Iterator[Row]:
    """Ours / theirs, interleaved. Raises SkippedError without a checkout."""
    if bench.gpt_fast is None:
        raise SkippedError("no checkout of gpt-fast was given: GPT_FAST=DIR")
    pair = seven(bench)
    reader = pair.reader()
    # ours first: importing theirs changes how inductor compiles everything after
    bench.facts |= {"reader": reader.name, "why": reader.why, "prepare_s": prepared(reader, [1], longest(pair))}
    match = pair.match(None, 1)
    ours = peers.Ours(peers.OURS, match, reader)
    ours.write(pair.timed[0], SAMPLED)
    theirs = GptFast(bench.gpt_fast, pair)
    bench.facts |= {"gpt_fast": revision(bench.gpt_fast), "not_compiled": None}
    try:
        compile_s = theirs.compiled(pair.timed[0])
    except Exception as error:  # what its code and this torch make of each other is no fault of ours
        if bench.cuda:
            raise SkippedError(f"gpt-fast did not compile: {first_line(error)}") from error
        bench.facts["not_compiled"] = first_line(error)
        theirs.uncompiled()
        compile_s = 0.0
    repeats, seed = pair.settings.repeats, pair.settings.seed
    found = peers.contest([ours, theirs], pair.timed, SAMPLED, repeats=repeats, seed=seed)
    greedy = peers.contest([ours], pair.timed, Sampling(), repeats=repeats, seed=seed)[peers.OURS]
    yield row(
        "our autoregressive decode / gpt-fast, its default sampling",
        pair.name,
        peers.faster(found[peers.OURS], found[THEIRS]),
        (">=", 1.0),
        ours_tokens_per_s=found[peers.OURS].tokens_per_s,
        theirs_tokens_per_s=found[THEIRS].tokens_per_s,
        ours_greedy_tokens_per_s=greedy.tokens_per_s,
        their_compile_s=compile_s,
        **({} if bench.facts["not_compiled"] is None else {"theirs": "not compiled"}),
    )


class GptFast:
    """A contestant of eval/peers.py: gpt-fast's `generate` on a model of the pair's sizes."""

    name = THEIRS
    drafts = False

    def __init__(self, checkout: Path, pair: Pair) -> None:
        self.device = pair.target.device
        self._pair = pair
        self._code, model = imported(checkout)
        self._plain = self._code.decode_one_token
        settings = pair.settings
        sizes = model.ModelArgs(
            block_size=settings.context,
            vocab_size=settings.vocabulary,
            n_layer=settings.layers,
            n_head=settings.hidden // settings.head_dim,
            dim=settings.hidden,
            intermediate_size=settings.ffn,
        )
        before = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, pair.dtype))
        try:
            with torch.device(self.device):
                self._model = model.Transformer(sizes).eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(before)

    def compiled(self, prompt: Prompt) -> float:
        """As its command compiles it; the seconds of the first output."""
        self._code.decode_one_token = torch.compile(self._plain, mode="reduce-overhead", fullgraph=True)
        watch = Stopwatch(str(self.device))
        begun_s = watch.now_s()
        self.write(prompt, Sampling())
        return watch.now_s() - begun_s

    def uncompiled(self) -> None:
        """As it is without --compile."""
        self._code.decode_one_token = self._plain

    def write(self, prompt: Prompt, sampling: Sampling) -> Generation:
        """Its `generate`, with the sampling of its command whatever is asked for."""
        ids = torch.tensor(prompt.ids, dtype=torch.int, device=self.device)
        tokens, _ = self._code.generate(
            self._model,
            ids,
            self._pair.limits.max_new_tokens,
            batch_size=1,
            interactive=False,
            draft_model=None,
            **DEFAULTS,
        )
        return Generation(prompt.ids, tokens[0, len(prompt.ids) :].tolist())

    watched = write


def imported(checkout: Path) -> tuple[ModuleType, Any]:
    """Its generate.py and model.py. Its tokenizer needs packages for real text only, and is left out."""
    tokenizer = ModuleType("tokenizer")
    vars(tokenizer)["get_tokenizer"] = None
    sys.modules["tokenizer"] = tokenizer
    sys.path.insert(0, str(checkout))
    return importlib.import_module("generate"), importlib.import_module("model")


def revision(checkout: Path) -> str | None:
    """Which one of it this is, where git knows."""
    done = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None
