from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from factory.anatomy.families import shape_from_config
from factory.errors import DataError, FactoryError
from factory.models.loading import fingerprint, load_model
from factory.stages import Given

from .conftest import stage_of

Maker = Callable[..., PreTrainedModel]


@pytest.fixture
def models(families: dict[str, Maker]) -> tuple[PreTrainedModel, Callable[[], PreTrainedModel]]:
    """A target and what makes an untrained drafter, Llama."""
    tiny = families["llama"]
    return tiny(seed=0, dtype=torch.float32), lambda: tiny(layers=2, seed=1, dtype=torch.float32)


def test_training_moves_every_family_toward_its_target(tiny: Maker, given_of: Callable[..., Given]) -> None:
    target, drafter = tiny(seed=0, dtype=torch.float32), tiny(layers=2, seed=1, dtype=torch.float32)
    before = fingerprint(target)
    facts = stage_of(epochs=20, lr=3e-3).apply(drafter, given_of(target))
    assert facts["held_out_after"]["overlap"] > 1.1 * facts["held_out_before"]["overlap"]
    assert facts["held_out_after"]["forward_kl"] < 0.95 * facts["held_out_before"]["forward_kl"]
    assert len(facts["losses"]) == facts["steps"] == 60
    assert facts["trained_tokens"] == 20 * facts["answer_tokens"]
    assert fingerprint(target) == before
    assert not drafter.training and not any(p.requires_grad for p in drafter.parameters())


def test_a_perfect_drafter_has_nothing_to_learn(tiny: Maker, given_of: Callable[..., Given]) -> None:
    target, drafter = tiny(dtype=torch.float32), tiny(dtype=torch.float32)
    facts = stage_of(lr=1e-4).apply(drafter, given_of(target))
    assert abs(facts["losses"][0]) < 1e-5
    assert facts["held_out_before"]["overlap"] > 0.9999


# Adam makes full steps of gradients that are rounding errors (a key's bias has none), so losses are compared, not bits.
@pytest.mark.parametrize("same", [{"batch": 2, "accumulate": 4}, {"pack": 16}, {"gradient_checkpointing": True}])
def test_how_a_step_is_made_does_not_change_it(
    models: tuple[PreTrainedModel, Callable[[], PreTrainedModel]], given_of: Callable[..., Given], same: dict[str, Any]
) -> None:
    target, make = models
    plain = stage_of(epochs=2, lr=3e-3, batch=8).apply(make(), given_of(target, name="plain"))
    other = stage_of(**{"epochs": 2, "lr": 3e-3, "batch": 8, **same}).apply(make(), given_of(target, name="other"))
    assert other["losses"] == pytest.approx(plain["losses"], rel=1e-3)
    assert plain["losses"][0] != pytest.approx(plain["losses"][-1], rel=1e-2)


RESUMED: list[dict[str, Any]] = [
    {},
    {"optimizer": "muon", "weight_decay": 0.1},
    {"ema": 0.9},
    {"lora": 4},
    {"pack": 16},
    {"on_policy": {"share": 0.5}, "method": "f_distill"},
    {"select": {"keep": 0.5}},
    {"select": {"keep": 0.5}, "on_policy": {"share": 0.5}},
    {"freeze": ["embedding", "norms"], "loss": [{"kind": "lk_hybrid"}, {"kind": "cross_entropy", "weight": 0.1}]},
    {"patience": 2, "check_every": 1},
]


@pytest.mark.parametrize("fields", RESUMED, ids=str)
@pytest.mark.parametrize("at", [3, 7])
def test_an_interrupted_training_ends_bit_for_bit_alike(
    models: tuple[PreTrainedModel, Callable[[], PreTrainedModel]],
    given_of: Callable[..., Given],
    fields: dict[str, Any],
    at: int,
) -> None:
    class StopTrainingError(Exception):
        pass

    def interrupt(done: int, total: int, what: str) -> None:
        if done == at and total == 9 and "distilling" in what:
            raise StopTrainingError

    target, make = models
    stage = stage_of(**{"epochs": 3, "lr": 3e-3, "checkpoint_every": 2, **fields})
    whole, cut = make(), make()
    undisturbed = stage.apply(whole, given_of(target, name="whole"))
    with pytest.raises(StopTrainingError):
        stage.apply(cut, given_of(target, name="cut", progress=interrupt))
    cut = make()
    resumed = stage.apply(cut, given_of(target, name="cut"))
    assert fingerprint(whole) == fingerprint(cut)
    assert resumed == undisturbed


def test_the_best_weights_are_kept_and_patience_ends_a_training(
    models: tuple[PreTrainedModel, Callable[[], PreTrainedModel]], given_of: Callable[..., Given]
) -> None:
    target, make = models
    wild: dict[str, Any] = {"epochs": 30, "lr": 0.03, "final_lr": 1.0, "warmup": 0.0, "check_every": 3}
    best, last = make(), make()
    kept = stage_of(**wild).apply(best, given_of(target, name="best"))
    not_kept = stage_of(**wild, keep="last").apply(last, given_of(target, name="last"))
    overlaps = {look["step"]: look["overlap"] for look in kept["looks"]}
    assert kept["kept_step"] == max(overlaps, key=lambda step: (overlaps[step], -step)) < kept["steps"] == 90
    assert kept["held_out_after"]["overlap"] == pytest.approx(max(overlaps.values()), abs=1e-6)
    assert not_kept["kept_step"] == 90 and fingerprint(best) != fingerprint(last)
    # what was said of the kept weights is true of them
    again = stage_of(epochs=1, lr=1e-9).apply(best, given_of(target, name="again"))
    assert again["held_out_before"]["overlap"] == pytest.approx(kept["held_out_after"]["overlap"], abs=1e-6)
    early = stage_of(**wild, patience=2).apply(make(), given_of(target, name="early"))
    assert early["kept_step"] + 2 * 3 == early["steps"] < 90 == early["planned_steps"]


def test_looks_say_what_the_drafter_would_bring(
    models: tuple[PreTrainedModel, Callable[[], PreTrainedModel]], given_of: Callable[..., Given]
) -> None:
    target, make = models

    def modelled(alpha: float) -> dict[str, float]:
        return {"speedup": 1 + alpha, "k": 3}

    facts = stage_of(epochs=3, check_every=3).apply(make(), given_of(target, modelled=modelled))
    assert [look["step"] for look in facts["looks"]] == [0, 3, 6, 9]
    for look in facts["looks"]:
        a = look["overlap"]
        assert look["speedup"] == pytest.approx(1 + a, abs=1e-5)
        assert look["k"] == 3
    assert facts["looks"][1]["loss"] == pytest.approx(sum(facts["losses"][:3]) / 3, abs=1e-4)


def test_nothing_held_out_still_trains(
    models: tuple[PreTrainedModel, Callable[[], PreTrainedModel]], given_of: Callable[..., Given]
) -> None:
    target, make = models
    facts = stage_of(epochs=1, patience=1).apply(make(), given_of(target, held_out=0))
    assert facts["looks"] == [] and facts["held_out_after"] is None and facts["kept_step"] == facts["steps"] == 3


def test_a_diverging_training_stops_at_its_last_good_state_and_says_what_to_lower(
    models: tuple[PreTrainedModel, Callable[[], PreTrainedModel]], given_of: Callable[..., Given]
) -> None:
    target, make = models
    seen = []

    def poison(done: int, total: int, what: str) -> None:
        if "distilling" in what and done == 5:
            seen.append(what)
            with torch.no_grad():
                next(drafter.parameters()).fill_(float("nan"))

    drafter = make()
    given = given_of(target, progress=poison)
    with pytest.raises(FactoryError, match=r"step 5 of 9; lower `lr` .*state of step 4 is kept"):
        stage_of(epochs=3, checkpoint_every=2).apply(drafter, given)
    state = torch.load(given.checkpoint / "checkpoint.pt", weights_only=True)
    assert state["step"] == 4 and all(bool(torch.isfinite(w).all()) for w in state["model"].values())
    finished = stage_of(epochs=3, checkpoint_every=2).apply(make(), replace(given, progress=lambda *_: None))
    assert finished["steps"] == 9


def test_a_checkpoint_of_another_training_is_refused(
    models: tuple[PreTrainedModel, Callable[[], PreTrainedModel]], given_of: Callable[..., Given]
) -> None:
    target, make = models
    given = given_of(target)
    stage_of(epochs=3, checkpoint_every=2).apply(make(), given)
    with pytest.raises(DataError, match="checkpoint of another training"):
        stage_of(epochs=3, checkpoint_every=2, lr=1e-4).apply(make(), given)


@pytest.mark.parametrize(
    ("freeze", "still", "moving"),
    [
        (["embedding"], ["embed_tokens"], ["lm_head", "layers", "norm"]),
        (["head"], ["lm_head"], ["embed_tokens", "layers"]),
        (["norms"], ["norm"], ["embed_tokens", "q_proj", "lm_head"]),
        (["layers"], ["layers"], ["embed_tokens", "lm_head"]),
    ],
)
def test_what_is_frozen_stays(
    models: tuple[PreTrainedModel, Callable[[], PreTrainedModel]],
    given_of: Callable[..., Given],
    freeze: list[str],
    still: list[str],
    moving: list[str],
) -> None:
    target, make = models
    drafter = make()
    before = {name: weight.clone() for name, weight in drafter.state_dict().items()}
    stage_of(epochs=1, freeze=freeze).apply(drafter, given_of(target))
    moved = {name for name, weight in drafter.state_dict().items() if not torch.equal(weight, before[name])}
    assert not [name for name in moved if any(part in name for part in still)]
    assert all(any(part in name for name in moved) for part in moving)


def test_everything_frozen_is_refused(
    models: tuple[PreTrainedModel, Callable[[], PreTrainedModel]], given_of: Callable[..., Given]
) -> None:
    target, make = models
    with pytest.raises(FactoryError, match="everything is frozen"):
        stage_of(freeze=["embedding", "head", "norms", "layers"]).apply(make(), given_of(target))


def test_adapters_are_merged_into_matrices_of_layers_alone(tiny: Maker, given_of: Callable[..., Given]) -> None:
    target, drafter = tiny(seed=0, dtype=torch.float32), tiny(layers=2, seed=1, dtype=torch.float32)
    before = {name: weight.clone() for name, weight in drafter.state_dict().items()}
    facts = stage_of(epochs=6, lr=1e-2, lora=4).apply(drafter, given_of(target))
    after = drafter.state_dict()
    assert set(after) == set(before)
    moved = [name for name in after if not torch.equal(after[name], before[name])]
    assert moved and all(after[name].ndim == 2 for name in moved)
    assert all(torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-4) <= 4 for name in moved)
    assert facts["losses"][-1] < facts["losses"][0]


def test_a_running_mean_is_what_is_judged_and_kept(
    models: tuple[PreTrainedModel, Callable[[], PreTrainedModel]], given_of: Callable[..., Given]
) -> None:
    target, make = models
    plain, mean = make(), make()
    stage_of(epochs=3, keep="last").apply(plain, given_of(target, name="plain"))
    facts = stage_of(epochs=3, keep="last", ema=0.99).apply(mean, given_of(target, name="mean"))
    start = make()
    far = sum((a - b).norm() for a, b in zip(plain.parameters(), start.parameters(), strict=True))
    near = sum((a - b).norm() for a, b in zip(mean.parameters(), start.parameters(), strict=True))
    assert 0 < near < far
    again = stage_of(epochs=1, lr=1e-9).apply(mean, given_of(target, name="again"))
    assert again["held_out_before"]["overlap"] == pytest.approx(facts["held_out_after"]["overlap"], abs=1e-6)


def test_selection_leaves_out_what_the_reference_gains_nothing_on(
    models: tuple[PreTrainedModel, Callable[[], PreTrainedModel]], given_of: Callable[..., Given]
) -> None:
    target, make = models
    given = given_of(target)
    facts = stage_of(epochs=3, select={"keep": 0.25, "reference_epochs": 2}).apply(make(), given)
    plain = stage_of(epochs=3).apply(make(), given_of(target, name="plain"))
    losses = torch.load(given.checkpoint / "reference" / "losses.pt", weights_only=True)["losses"]
    assert len(losses) == facts["answer_tokens"]
    # only tokens with the largest gain count, and those begin with larger losses than the mean
    assert facts["losses"][0] > plain["losses"][0]


def test_a_step_without_an_answer_changes_nothing(
    models: tuple[PreTrainedModel, Callable[[], PreTrainedModel]], given_of: Callable[..., Given]
) -> None:
    target, make = models
    given = given_of(target)
    assert given.text is not None
    silent_text = replace(given.text, answer=torch.zeros_like(given.text.answer))
    drafter, before = make(), fingerprint(make())
    facts = stage_of(epochs=1).apply(drafter, replace(given, text=silent_text, held_out=None))
    assert facts["losses"] == [0.0, 0.0, 0.0]
    assert fingerprint(drafter) == before


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_an_untied_head_learns_apart_from_the_embedding_and_is_saved(
    families: dict[str, Maker], given_of: Callable[..., Given], family: str, tmp_path: Path
) -> None:
    more = {"tie_word_embeddings": True} if family == "llama" else {}
    target = families[family](seed=0, dtype=torch.float32, **more)
    drafter = families[family](layers=2, seed=1, dtype=torch.float32, **more)
    stage = stage_of(epochs=2, untie_head=True)
    stage.apply(drafter, given_of(target))
    assert not torch.equal(drafter.get_input_embeddings().weight, drafter.get_output_embeddings().weight)
    drafter.save_pretrained(tmp_path / "saved")
    ids = torch.arange(3, 20)[None]
    stored = load_model(tmp_path / "saved", dtype=torch.float32)
    torch.testing.assert_close(stored(input_ids=ids).logits, drafter(input_ids=ids).logits)
    shape = stage.forecast(
        shape_from_config({**target.config.to_dict(), "dtype": "float32", "num_hidden_layers": 2, "n_layer": 2})
    )
    assert shape.parameters == sum(weight.numel() for weight in stored.parameters())


def test_a_share_so_small_that_nothing_would_stay_keeps_one_token(
    models: tuple[PreTrainedModel, Callable[[], PreTrainedModel]], given_of: Callable[..., Given]
) -> None:
    target, make = models
    drafter, before = make(), fingerprint(make())
    facts = stage_of(select={"keep": 0.001}).apply(drafter, given_of(target))
    assert facts["trained_tokens"] == facts["steps"] == 3 and all(loss > 0 for loss in facts["losses"])
    assert fingerprint(drafter) != before


def test_the_likelihood_of_tokens_alone_does_not_ask_the_target(
    models: tuple[PreTrainedModel, Callable[[], PreTrainedModel]], given_of: Callable[..., Given]
) -> None:
    target, make = models
    given, read = given_of(target, memory={}), []
    target.base_model.register_forward_hook(lambda *_: read.append(1))
    facts = stage_of(epochs=3, lr=3e-3, loss="cross_entropy").apply(make(), given)
    assert len(read) == 1 and given.memory == {}  # the held-out text, once
    assert facts["losses"][-1] < facts["losses"][0]
    read.clear()
    mixed = [{"kind": "cross_entropy"}, {"kind": "forward_kl", "weight": 0.0}]
    asked = stage_of(epochs=3, lr=3e-3, loss=mixed).apply(make(), given_of(target, name="asked"))
    assert len(read) == 10 and asked["losses"] == facts["losses"]


def test_weights_that_break_in_the_last_step_are_not_kept(
    models: tuple[PreTrainedModel, Callable[[], PreTrainedModel]], given_of: Callable[..., Given]
) -> None:
    target, make = models

    def poison(done: int, total: int, what: str) -> None:
        if "distilling" in what and done == total == 6:
            with torch.no_grad():
                next(drafter.parameters()).fill_(float("nan"))

    drafter = make()
    with pytest.raises(FactoryError, match=r"the loss is nan at step 6 of 6; lower `lr` .*state of step 4 is kept"):
        stage_of(epochs=2, checkpoint_every=2).apply(drafter, given_of(target, progress=poison))


def test_adapters_are_drawn_from_any_seed(
    models: tuple[PreTrainedModel, Callable[[], PreTrainedModel]], given_of: Callable[..., Given]
) -> None:
    target, make = models
    given = replace(given_of(target), seed=2**63 - 1)
    own = {"share": 0.5, "new_tokens": 2}
    assert stage_of(lora=2, on_policy=own).apply(make(), given)["steps"] == 3


def test_a_damaged_checkpoint_is_told(
    models: tuple[PreTrainedModel, Callable[[], PreTrainedModel]], given_of: Callable[..., Given]
) -> None:
    target, make = models
    given = given_of(target)
    path = given.checkpoint / "checkpoint.pt"
    for damaged in (b"", b"no checkpoint"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"missing or damaged .*; remove its folder to begin this training anew"):
            stage_of().apply(make(), given)


def test_without_a_compiler_nothing_is_compiled(
    models: tuple[PreTrainedModel, Callable[[], PreTrainedModel]],
    given_of: Callable[..., Given],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target, make = models
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FactoryError, match=r"`compile: true`, and no C\+\+ compiler is on the path: .*remove the key"):
        stage_of(compile=True).apply(make(), given_of(target))
