"""The pairs that docs/benchmarks/decoder.py measures: the shipped target, and a 110M shape with random weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from eval.peers import Match
from eval.suites import Prompt, load_suite, prompt_sets
from factory.anatomy.families import shape_from_config
from factory.anatomy.shapes import Shape
from factory.artifact import Artifact
from factory.decoding.decoder import Limits
from factory.decoding.reader import Reader
from factory.decoding.readers import ReaderKind, open_reader
from factory.forecasting.forecast import served
from factory.models.loading import context_length, eos_token_ids, load_model, load_tokenizer
from factory.stages.drop_layers import DropLayers
from factory.surgery.carving import carve_module

TARGET = Path(__file__).resolve().parents[2] / "recipes" / "demo" / "target"
DTYPE = "float32"
SHIPPED, BIG = "shipped target", "110M shape"
# What the later layers' o_proj and down_proj are multiplied by, by the number of layers that the drafter
# keeps: found by trial so that greedy alpha is about .75.
LATER = {1: 0.024, 2: 0.035}
HEAD = 8.0  # spreads random logits as far as a trained model's; greedy tokens stay what they are
ARRANGED = (
    "Random weights, and all layers behind the drafter's scaled down until it agrees with the target often: its "
    "acceptance is arranged and says nothing about drafters. Only costs and ratios against peers are meant."
)


class SkippedError(Exception):
    """This cannot be measured here; the message says why."""


@dataclass(frozen=True)
class Settings:
    """How much is measured."""

    prompts: int = 6  # to choose by and to time peers on
    fresh: int = 10  # others, for what was chosen
    new_tokens: int = 48
    big_prompts: int = 4
    big_new_tokens: int = 32
    repeats: int = 3
    sampled_repeats: int = 1  # a sampled output differs from prompt to prompt more than from repeat to repeat
    passes: int = 40  # single passes that a ratio of passes is made of
    batch: int = 8
    groups: int = 3  # of `batch` prompts
    batch_repeats: int = 2
    ks: tuple[int, ...] = (1, 2, 3, 4, 6)  # tried for the best speedup
    drafter_layers: int = 1  # of the 110M shape
    k: int = 4  # against peers: 5 tokens to verify
    hidden: int = 768
    layers: int = 12
    ffn: int = 2048
    vocabulary: int = 32000
    head_dim: int = 64
    context: int = 1024
    seed: int = 0

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


# Shows that every part runs; its figures mean nothing.
QUICK = Settings(
    prompts=2,
    fresh=2,
    new_tokens=8,
    big_prompts=2,
    big_new_tokens=8,
    repeats=1,
    passes=4,
    groups=2,
    batch_repeats=1,
    ks=(1, 2),
    hidden=128,
    layers=3,
    ffn=256,
    vocabulary=2000,
    context=256,
)


@dataclass
class Pair:
    """A target, what drafts for it, and prompts."""

    name: str
    target: PreTrainedModel
    drafters: dict[str, PreTrainedModel]
    prompts: list[Prompt]
    fresh: list[Prompt]
    limits: Limits
    settings: Settings
    note: str | None = None
    dtype: str = DTYPE
    opened: Callable[[PreTrainedModel, ReaderKind], Reader] = open_reader
    _readers: dict[tuple[str, str], Reader] = field(default_factory=dict)

    def reader(self, whose: str = "", kind: ReaderKind = "auto") -> Reader:
        """Of the target, or of a drafter by its name; opened once, which on a CPU packs weights."""
        if (whose, kind) not in self._readers:
            self._readers[whose, kind] = self.opened(self.drafters[whose] if whose else self.target, kind)
        return self._readers[whose, kind]

    @property
    def timed(self) -> list[Prompt]:
        """The prompts of contests; batches take all."""
        return self.prompts[: self.settings.prompts if self.name == SHIPPED else self.settings.big_prompts]

    def drafter(self) -> str:
        """The first drafter's name. Raises SkippedError without one."""
        if not self.drafters:
            raise SkippedError("no drafter: `factory build recipes/demo/quick.yaml --out artifacts/demo` makes it")
        return next(iter(self.drafters))

    def shape(self, whose: str = "") -> Shape:
        """As it runs."""
        model = self.drafters[whose] if whose else self.target
        return served(shape_from_config(model.config.to_dict()), self.dtype)

    def match(self, drafter: str | None, k: int) -> Match:
        """For eval/peers.py."""
        return Match(self.target, self.drafters[drafter] if drafter else None, k, self.limits, self.settings.seed)

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "model": self.name,
            "parameters": self.target.num_parameters(),
            "shape": asdict(self.shape()),
            "drafters": {name: asdict(self.shape(name)) for name in self.drafters},
            "readers": {
                f"{whose or 'target'}, {kind}": {"name": one.name, "why": one.why}
                for (whose, kind), one in self._readers.items()
            },
            "prompt_tokens": [len(prompt.ids) for prompt in self.prompts],
            "max_new_tokens": self.limits.max_new_tokens,
            "note": self.note,
        }


def shipped(folders: Sequence[Path], settings: Settings) -> Pair:
    """The shipped target, the artifacts made from it, and prompts of the suite `code`.

    Raises FactoryError where an artifact is damaged or was made from another target.
    """
    artifacts = [Artifact.open(folder) for folder in folders]
    dtype = getattr(torch, DTYPE)
    for artifact in artifacts:
        artifact.verify()
        target = artifact.load_target(str(TARGET), dtype, "cpu")  # refuses one that is not its own
    if not artifacts:
        target = load_model(TARGET, dtype=dtype)
    tokenizer, context = load_tokenizer(TARGET), context_length(target)
    sets = prompt_sets(
        load_suite("code"),
        lambda text: tokenizer(text)["input_ids"],
        context - settings.new_tokens - 1,
        max(settings.prompts, settings.batch * settings.groups),
        settings.fresh,
    )
    return Pair(
        SHIPPED,
        target,
        {artifact.name: artifact.load_model(dtype, "cpu") for artifact in artifacts},
        sets.choose,
        sets.confirm,
        Limits(settings.new_tokens, eos_token_ids(target), context),
        settings,
    )


def big(settings: Settings) -> Pair:
    """A Llama of 12 layers x 768 with random weights, seeded; its first layers are the drafter. No token ends a text.

    Where weights are random no later layer agrees with the first one, so the later ones are made to
    matter little (LATER). Every tensor keeps its size, and is read and multiplied as any other.
    """
    keep = settings.drafter_layers
    target = random_llama(settings, DTYPE)
    weaken(target, keep, LATER[keep])
    return Pair(
        BIG,
        target,
        {first_layers(keep): its_first_layers(target, keep)},
        random_prompts(settings, [12 + request % 17 for request in range(prompts_needed(settings))]),
        [],
        Limits(settings.big_new_tokens, frozenset(), settings.context),
        settings,
        ARRANGED,
    )


def random_llama(settings: Settings, dtype: str, device: str = "cpu") -> PreTrainedModel:
    """A Llama of the sizes in `settings`, made on the device; its logits are as far apart as a trained model's."""
    config = LlamaConfig(
        hidden_size=settings.hidden,
        intermediate_size=settings.ffn,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.hidden // settings.head_dim,
        num_key_value_heads=settings.hidden // settings.head_dim,
        vocab_size=settings.vocabulary,
        max_position_embeddings=settings.context,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(), torch.no_grad(), torch.device(device):
        torch.manual_seed(settings.seed)
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval().requires_grad_(False)
        model.lm_head.weight.mul_(HEAD)
    return model


@torch.no_grad()
def weaken(model: PreTrainedModel, keep: int, factor: float) -> None:
    """Scale what the layers behind the first `keep` add, in place."""
    for layer in model.model.layers[keep:]:
        layer.self_attn.o_proj.weight.mul_(factor)
        layer.mlp.down_proj.weight.mul_(factor)


def its_first_layers(model: PreTrainedModel, keep: int) -> PreTrainedModel:
    """A drafter of them."""
    shape = shape_from_config(model.config.to_dict())
    return carve_module(model, DropLayers(kind="drop_layers", keep=list(range(keep))).decide(shape, {}))


def first_layers(keep: int) -> str:
    """The name of such a drafter."""
    return f"its first {keep} layers" if keep > 1 else "its first layer"


def prompts_needed(settings: Settings) -> int:
    """By contests and by batches."""
    return max(settings.big_prompts, settings.batch * settings.groups)


def random_prompts(settings: Settings, lengths: Sequence[int]) -> list[Prompt]:
    """Of these lengths, seeded."""
    generator = torch.Generator().manual_seed(settings.seed)
    return [
        Prompt(request, torch.randint(3, settings.vocabulary, (length,), generator=generator).tolist())
        for request, length in enumerate(lengths)
    ]
