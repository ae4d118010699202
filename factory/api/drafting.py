"""`factory.load_drafter`: a drafter with its target, ready to write, from a program."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from factory.artifact import Artifact
from factory.chat.settings import MOST_GUESSES
from factory.errors import DataError
from factory.pair import Pair, open_artifact, open_pair, reader_kind
from factory.progress import Progress, silent
from factory.publishing.pull import fetched

if TYPE_CHECKING:
    from factory.decoding.batch import Generation
    from factory.decoding.drafters import Drafter
    from factory.decoding.pace import AutoPace
    from factory.decoding.sampling import Sampling

Auto = Literal["auto"]
Prompts = str | Sequence[str] | Sequence[Sequence[int]]


@dataclass(frozen=True)
class Written:
    """What was written behind one prompt, and what it took."""

    prompt: list[int]  # token ids, as read
    tokens: list[int]  # new token ids; an end-of-text token is the last
    text: str  # the new tokens' text, special tokens left out
    target_passes: int  # the prefill among them
    accepted: int  # guesses that stood
    rejected: int  # guesses that fell; those behind one that fell were examined by nobody
    proposed: int

    @property
    def alpha(self) -> float | None:
        """Share of the examined guesses that stood; None where none was examined."""
        examined = self.accepted + self.rejected
        return self.accepted / examined if examined else None

    @property
    def tau(self) -> float:
        """New tokens a target pass, the prefill's among them; 1 without a drafter."""
        return len(self.tokens) / self.target_passes


class LoadedDrafter:
    """A target, and a drafter that makes it faster without changing what it says.

    Greedy output is the target's own token by token (up to ties of rounding), sampled output equal in law.
    """

    def __init__(self, artifact: Artifact, pair: Pair) -> None:
        self.artifact = artifact
        self.k = measured_k(artifact)
        self._pair = pair
        self._paces: dict[tuple[int, bool], AutoPace] = {}  # by rows, and whether greedy: each has its costs

    @property
    def notes(self) -> tuple[str, ...]:
        """What runs how: sizes, dtype, device and reader of both models, a line each."""
        return self._pair.notes

    @property
    def context(self) -> int:
        """Tokens that a prompt and its output may have together."""
        return self._pair.target.context

    def generate(
        self,
        prompts: Prompts,
        max_new_tokens: int = 128,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        k: int | Auto | None = None,
        seed: int = 0,
        batch: int = 8,
    ) -> list[Written]:
        """What the target writes behind each prompt, in their order.

        `prompts`: a text, texts, or lists of token ids (from a chat template, say); texts are encoded as the
        evaluation encodes them. Each gets at most `max_new_tokens`, and ends at an end-of-text token or where the
        context is full. `temperature` 0 is greedy; top_k 0 and top_p 1 are off. `k`: guesses a round, at most 64; None:
        the k that an evaluation of this artifact measured to be best, else "auto"; "auto": chosen in each round from
        costs that are measured first, dozens of target steps once for a number of rows; 0: the target alone.
        `batch`: prompts answered together. The same prompts, `seed` and numbers give the same texts, whatever the
        batch; sampled ones differ between k.

        Raises DataError for a value that is out of range, and for a prompt that is empty or fills the context.
        """
        from factory.decoding.sampling import Sampling

        if isinstance(k, bool) or not (k is None or k == "auto" or (isinstance(k, int) and 0 <= k <= MOST_GUESSES)):
            raise DataError(f"k: must be a whole number from 0 to {MOST_GUESSES}, 'auto' or None, not {k!r}")
        for name, value in (("max_new_tokens", max_new_tokens), ("batch", batch)):
            if value < 1:
                raise DataError(f"{name}: must be at least 1, not {value}")
        try:
            sampling = Sampling(temperature, top_k, top_p)
        except ValueError as error:
            raise DataError(str(error)) from None
        guesses = (self.k or "auto") if k is None else k
        return list(self._written(self._ids(prompts), max_new_tokens, sampling, guesses, seed, batch))

    def _ids(self, prompts: Prompts) -> list[list[int]]:
        given = [prompts] if isinstance(prompts, str) else prompts
        found = [self._pair.tokenizer(one)["input_ids"] if isinstance(one, str) else list(one) for one in given]
        vocabulary = self._pair.target.vocabulary
        for number, ids in enumerate(found, 1):
            if any(not 0 <= token < vocabulary for token in ids):
                raise DataError(
                    f"prompt {number} has token ids outside the vocabulary, which are 0 to {vocabulary - 1}"
                )
        return found

    def _written(
        self, prompts: list[list[int]], most: int, sampling: Sampling, k: int | Auto, seed: int, batch: int
    ) -> Iterator[Written]:
        from factory.decoding.decoder import Limits, autoregressive, speculative
        from factory.decoding.sampling import Noise

        target, drafter = self._pair.target, self._pair.model
        limits = Limits(most, self._pair.eos, self.context)
        for first in range(0, len(prompts), batch):
            rows = prompts[first : first + batch]
            noise = Noise(seed, range(first, first + len(rows)), device=target.device)
            if k == 0 or drafter is None:
                outputs = autoregressive(target, rows, sampling, limits, noise)
            else:
                guesses = self._pace(drafter, rows, sampling) if k == "auto" else k
                outputs = speculative(target, drafter, rows, guesses, sampling, limits, noise)
            yield from map(self._told, outputs)

    def _pace(self, drafter: Drafter, rows: list[list[int]], sampling: Sampling) -> AutoPace:
        from eval.timing.bench import Stopwatch
        from factory.decoding.costs import measure_costs
        from factory.decoding.pace import AutoPace

        key = len(rows), sampling.greedy
        if key not in self._paces:
            now_s = Stopwatch(str(self._pair.target.device)).now_s
            self._paces[key] = AutoPace(measure_costs(self._pair.target, drafter, rows, sampling, now_s))
        return self._paces[key]

    def _told(self, output: Generation) -> Written:
        from eval.measurement import acceptance
        from factory.chat.stream import decoded

        counts = acceptance([output])
        return Written(
            prompt=output.prompt,
            tokens=output.tokens,
            text=decoded(self._pair.tokenizer, output.tokens),
            target_passes=output.target_passes,
            accepted=counts.accepted,
            rejected=counts.rejected,
            proposed=counts.proposed,
        )


def load_drafter(
    artifact: Artifact | str | Path,
    *,
    target: str | Path | None = None,
    device: str = "auto",
    dtype: Literal["auto", "float64", "float32", "bfloat16", "float16"] = "auto",
    reader: str = "auto",
    drafter_reader: str = "auto",
    progress: Progress | None = None,
) -> LoadedDrafter:
    """Open an artifact with the target that it was made from, both verified, by the readers that an evaluation takes.

    `artifact`: one, its folder, or user/name on the Hub, which is pulled into the folder `artifacts`.
    `target`: where that target lies now, a folder or a Hub name. `device`: auto, cpu, cuda, or one GPU such as cuda:1.
    `dtype`: auto is float32 on a CPU, bfloat16 on CUDA. `reader`, `drafter_reader`: how each model is run (auto, eager,
    lean, packed, compiled, graphed; packed-int8 for the drafter). `progress`: called with (done, total, what).

    Raises ArtifactError where the folder is none, is damaged, or the target is another; ModelError, DataError,
    UnsupportedModel.
    """
    told = progress or silent
    if isinstance(artifact, Artifact):
        opened = artifact
        opened.verify(told)
    else:
        [folder] = fetched([str(artifact)], told)
        opened = open_artifact(folder, told)
    pair = open_pair(
        opened,
        None if target is None else str(target),
        reader=reader_kind(reader, "reader"),
        drafter_reader=reader_kind(drafter_reader, "drafter_reader"),
        device=device,
        dtype=dtype,
        progress=told,
    )
    told(3, 3, "loading")
    return LoadedDrafter(opened, pair)


def measured_k(artifact: Artifact) -> int | None:
    """The fixed k that the last evaluation of this very artifact found best; None where there is none."""
    row = artifact.best_row()
    return None if row is None else int(row["k"])
