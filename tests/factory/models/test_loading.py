from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from factory.anatomy.families import anatomy_of
from factory.anatomy.shapes import Edit
from factory.errors import ModelError
from factory.models import loading as models
from factory.models import located
from factory.surgery.carving import carve_module


def carved(model: PreTrainedModel, keep: tuple[int, ...]) -> PreTrainedModel:
    return carve_module(model, Edit(keep_layers=keep))


def test_a_carved_model_equals_the_full_one_with_layers_bypassed(tiny: Callable[..., PreTrainedModel]) -> None:
    model = tiny(layers=5)
    ids = torch.randint(0, 96, (2, 20), generator=torch.Generator().manual_seed(0))
    drafter = carved(model, (0, 3))
    layers = model.get_submodule(anatomy_of(model.config.to_dict()).layers)
    for index in (1, 2, 4):  # an independent way to skip a layer: make it return its input

        def bypass(_m: object, inputs: tuple[torch.Tensor, ...], output: object) -> object:
            return (inputs[0], *output[1:]) if isinstance(output, tuple) else inputs[0]

        layers[index].register_forward_hook(bypass)
    expected = model(input_ids=ids, use_cache=False).logits
    assert torch.equal(drafter(input_ids=ids, use_cache=False).logits, expected)
    assert drafter.num_parameters() < model.num_parameters()


def test_a_carved_model_shares_no_memory_with_its_source(tiny: Callable[..., PreTrainedModel]) -> None:
    model = tiny(layers=3)
    before = models.fingerprint(model)
    drafter = carved(model, (0, 1, 2))
    for parameter in drafter.parameters():
        parameter.data.add_(1.0)
    assert models.fingerprint(model) == before


def test_a_carved_model_is_saved_smaller_and_loads_alike(tiny: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    model = tiny(layers=4)
    drafter = carved(model, (0,))
    model.save_pretrained(tmp_path / "full")
    drafter.save_pretrained(tmp_path / "one")
    size = {name: (tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "one")}
    assert size["one"] < 0.6 * size["full"]
    loaded = models.load_model(tmp_path / "one", dtype=torch.float64)
    assert loaded.config.num_hidden_layers == 1
    assert models.fingerprint(loaded) == models.fingerprint(drafter)


@pytest.mark.parametrize("change", ["one bit", "two elements swapped"])
def test_fingerprint_sees_a_change(tiny: Callable[..., PreTrainedModel], change: str) -> None:
    model = tiny(layers=2)
    before = models.fingerprint(model)
    assert models.fingerprint(model) == before
    weight = next(p for p in model.parameters() if p.ndim == 2)
    with torch.no_grad():
        if change == "one bit":
            weight.view(torch.int64)[3, 4] ^= 1
        else:
            weight[1, 0], weight[1, 1] = weight[1, 1].item(), weight[1, 0].item()
    assert models.fingerprint(model) != before


def test_new_model_refuses_a_state_that_does_not_fit(tiny: Callable[..., PreTrainedModel]) -> None:
    model = tiny(layers=2)
    config, tensors = model.config.to_dict(), model.state_dict()
    name = next(iter(tensors))
    with pytest.raises(ModelError, match=rf"missing \['{name}'\]"):
        models.new_model(config, [pair for pair in tensors.items() if pair[0] != name], like=model)
    with pytest.raises(ModelError, match=r"left over \['other'\]"):
        models.new_model(config, {**tensors, "other": tensors[name]}.items(), like=model)
    with pytest.raises(ModelError, match=rf"of another shape \['{name}'\]"):
        models.new_model(config, {**tensors, name: tensors[name][1:]}.items(), like=model)


def test_identity_follows_all_that_decides_what_a_model_says(tiny_target: Callable[..., Path], tmp_path: Path) -> None:
    folder, cache = tiny_target("llama", tmp_path / "m"), tmp_path / "identity.json"
    first = located.model_identity(folder, cache)
    assert located.model_identity(folder, cache) == first == located.model_identity(folder)

    def changed(name: str, old: str, new: str) -> str:
        kept = (folder / name).read_text()
        assert old in kept
        (folder / name).write_text(kept.replace(old, new, 1))
        found = located.model_identity(folder, cache)
        (folder / name).write_text(kept)
        return found

    seen = {
        first,
        changed("config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'),
        changed("generation_config.json", '"eos_token_id": 2', '"eos_token_id": 3'),
        changed("tokenizer.json", '"<unk>"', '"<UNK>"'),
    }
    assert len(seen) == 4
    assert changed("config.json", '"transformers_version": "', '"transformers_version": "9') == first
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    assert located.model_identity(folder, cache) not in seen
    (folder / "README.md").write_text("not of the model")


def test_what_cannot_be_loaded_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        located.locate(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match=r"no \.safetensors file"):
        located.model_identity(tmp_path)
    with pytest.raises(ModelError, match="cannot load"):
        models.load_model(tmp_path, dtype=torch.float32)
