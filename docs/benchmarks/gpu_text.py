"""Text that the shipped target writes here and now: what rounding is calibrated on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from decoder_pairs import TARGET
from gpu_pairs import Bench

from eval.suites import load_suite
from factory.data.blocks import TextBlocks
from factory.decoding.decoder import Generation, Limits, autoregressive
from factory.decoding.reader import Reader, right_padded
from factory.decoding.sampling import Noise, Sampling
from factory.models.loading import load_tokenizer

CALIBRATION = {"full": (96, 96), "small": (8, 24)}  # rows, and new tokens of each


def written(bench: Bench, reader: Reader) -> TextBlocks:
    """Text that the small target writes to the demo's prompts, in one batch."""
    rows, new_tokens = CALIBRATION[bench.size]
    tokenizer = load_tokenizer(TARGET)
    texts = load_suite("code").prompts
    prompts = [tokenizer(texts[-1 - row % len(texts)])["input_ids"][:64] for row in range(rows)]
    limits = Limits(new_tokens, frozenset(), reader.context)
    noise = Noise(0, range(rows), reader.device)
    outputs = autoregressive(reader, prompts, Sampling(temperature=1.0), limits, noise)
    return blocks(outputs)


def blocks(outputs: Sequence[Generation]) -> TextBlocks:
    """As a stage reads them: prompt, then answer."""
    ids, length = right_padded([[*one.prompt, *one.tokens] for one in outputs], torch.device("cpu"))
    place = torch.arange(ids.shape[1])[None]
    begins = torch.tensor([[len(one.prompt)] for one in outputs])
    answer = (place >= begins) & (place < torch.tensor(length)[:, None])
    return TextBlocks(ids, torch.tensor(length), answer, torch.arange(len(outputs)))
