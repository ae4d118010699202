"""Text as token blocks. Lets the target write the text that a drafter learns from.

A drafter is judged on what the target would write, so that is what it must learn: text of other
origin teaches it to predict tokens that it will never be asked for. What is written is kept in
shards, one a batch, each a pure function of (target, prompts, settings, seed): a killed run goes on
after its last shard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from factory.decoding.decoder import Limits, autoregressive
from factory.decoding.eager import EagerReader
from factory.decoding.sampling import Noise, Sampling
from factory.models import context_length, eos_token_ids

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class TextBlocks:
    """Rows of token ids with their prompts marked."""

    ids: torch.Tensor  # [N, T] int64, right-padded with 0
    length: torch.Tensor  # [N] real tokens
    answer_from: torch.Tensor  # [N] index of the first token that is not prompt

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def token_mask(self) -> torch.Tensor:  # [N, T] bool
        """Positions that hold a token."""
        return torch.arange(self.ids.shape[1])[None, :] < self.length[:, None]

    @property
    def answer_mask(self) -> torch.Tensor:  # [N, T] bool
        """Positions whose *next* token belongs to the answer: those whose prediction is learned."""
        position = torch.arange(self.ids.shape[1])[None, :] + 1
        return (position >= self.answer_from[:, None]) & (position < self.length[:, None])

    def rows(self, indices: Sequence[int]) -> TextBlocks:
        """Those rows, trimmed to the longest of them."""
        chosen = torch.as_tensor(list(indices), dtype=torch.long)
        length = self.length[chosen]
        longest = int(length.max()) if len(chosen) else 0
        return TextBlocks(self.ids[chosen, :longest], length, self.answer_from[chosen])


def text_blocks(rows: Sequence[tuple[Sequence[int], int]]) -> TextBlocks:
    """Pads (ids, answer_from) rows into one block."""
    length = torch.tensor([len(ids) for ids, _ in rows], dtype=torch.long)
    ids = torch.zeros((len(rows), int(length.max()) if rows else 0), dtype=torch.long)
    for row, (tokens, _) in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
    return TextBlocks(ids, length, torch.tensor([start for _, start in rows], dtype=torch.long))


def encode_prompts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], room: int) -> tuple[list[list[int]], int]:
    """Token ids of the prompts that leave room in a context of `room` tokens, and how many did not."""
    encoded = [list(ids) for ids in tokenizer(list(texts))["input_ids"]]
    fitting = [ids for ids in encoded if 0 < len(ids) <= room]
    return fitting, len(encoded) - len(fitting)


def split_held_out(prompts: int, samples: int, share: float) -> tuple[list[int], list[int]]:
    """Sample indices for training and held out. Sample i is written on prompt i % prompts.

    Split by prompt, so that no held-out text begins like one trained on; by sample where there is
    but one prompt (`bos`).
    """
    kinds = min(prompts, samples) if prompts > 1 else samples
    held = min(kinds - 1, max(1, round(share * kinds))) if share > 0 and kinds > 1 else 0
    training = [i for i in range(samples) if i % kinds < kinds - held]
    return training, [i for i in range(samples) if i % kinds >= kinds - held]


def write_text(
    target: Callable[[], PreTrainedModel],
    prompts: Sequence[Sequence[int]],
    *,
    samples: int,
    temperature: float,
    max_new_tokens: int,
    batch: int,
    seed: int,
    folder: Path,
    progress: Progress,
) -> TextBlocks:
    """The target's own continuations: sample i continues prompt i % len(prompts). Kept in `folder`.

    The target is asked for only where something is left to write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[Sequence[int], int]] = []
    progress(0, samples, "the target writes")
    for start in range(0, samples, batch):
        chosen = range(start, min(start + batch, samples))
        shard = folder / f"shard-{start // batch:05d}.safetensors"
        if not shard.is_file():
            given = [list(prompts[i % len(prompts)]) for i in chosen]
            model = target()
            limits = Limits(max_new_tokens=max_new_tokens, eos=eos_token_ids(model), context=context_length(model))
            noise = Noise(seed, list(chosen), device=str(model.device))
            outputs = autoregressive(EagerReader(model), given, Sampling(temperature=temperature), limits, noise)
            block = text_blocks([([*output.prompt, *output.tokens], len(output.prompt)) for output in outputs])
            partial = shard.with_suffix(".partial")
            tensors: dict[str, Any] = {"ids": block.ids, "length": block.length, "answer_from": block.answer_from}
            save_file(tensors, partial)
            partial.replace(shard)
        stored = load_file(shard)
        lengths, starts = stored["length"].tolist(), stored["answer_from"].tolist()
        rows += [(ids[:n], a) for ids, n, a in zip(stored["ids"].tolist(), lengths, starts, strict=True)]
        progress(len(rows), samples, "the target writes")
    return text_blocks(rows)
