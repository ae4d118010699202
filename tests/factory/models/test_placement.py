"""Targets that lie on more than one device: loaded, read, and compared with the same model whole."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from factory.decoding.decoder import Limits, autoregressive, speculative
from factory.decoding.drafters import ModelDrafter
from factory.decoding.readers import open_reader
from factory.decoding.sampling import Noise, Sampling
from factory.errors import ModelError
from factory.models.loading import fingerprint, load_model, require_finite
from factory.models.placement import Placement, cuda_devices, entry_device, layer_devices, why_divided

CPU = torch.device("cpu")
PROMPTS = [[1, 5, 9, 11], [1, 7], [3]]
# What does not fit into so much memory is read from disk in every pass, by the very hooks that move it between GPUs.
FETCHED = Placement("auto", {"cpu": 200_000})


def both(folder: Path, placement: Placement) -> tuple[PreTrainedModel, PreTrainedModel]:
    return load_model(folder, dtype=torch.float64), load_model(folder, dtype=torch.float64, placement=placement)


def test_a_divided_target_writes_what_it_writes_whole(tiny_folder: Path) -> None:
    whole, divided = both(tiny_folder, FETCHED)
    assert {part.is_meta for part in divided.parameters()} == {True, False}
    reader = open_reader(divided)
    assert (reader.name, reader.why, reader.device) == ("eager", "its layers lie on cpu and disk", CPU)
    drafter = ModelDrafter(open_reader(whole, "lean"), device=reader.device)
    limits = Limits(20, frozenset([2]), 160)
    for sampling in (Sampling(), Sampling(temperature=1.0)):
        given = (sampling, limits)
        expected = autoregressive(open_reader(whole), PROMPTS, *given, Noise(0, range(3)))
        assert autoregressive(reader, PROMPTS, *given, Noise(0, range(3))) == expected
        drafted = speculative(reader, drafter, PROMPTS, 3, *given, Noise(0, range(3)))
        again = speculative(open_reader(whole), drafter, PROMPTS, 3, *given, Noise(0, range(3)))
        assert [one.tokens for one in drafted] == [one.tokens for one in again]
        assert sum(sum(one.accepted) for one in drafted) > 20
    assert [one.tokens for one in drafted] != [one.tokens for one in expected]  # sampled: equal in law, not in tokens


def test_what_a_process_holds_is_watched_and_what_is_fetched_is_not(tiny_folder: Path) -> None:
    _, divided = both(tiny_folder, FETCHED)
    before = fingerprint(divided)
    held = next(part for part in divided.parameters() if not part.is_meta)
    held.data[0] += 1
    assert fingerprint(divided) != before
    held.data[0] = torch.nan
    with pytest.raises(ModelError, match="NaN or infinite weights in "):
        require_finite(divided)


def test_everything_on_disk_is_still_entered_on_the_cpu(tiny_target: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny_target("gpt_neox", tmp_path / "target")  # its largest part does not fit, so nothing stays
    _, divided = both(folder, FETCHED)
    assert all(part.is_meta for part in divided.parameters())
    assert entry_device(divided) == CPU and layer_devices(divided) == [CPU] * 4
    assert why_divided(divided) == "its layers lie on disk"


def test_a_target_that_fits_one_device_is_whole(tiny_folder: Path) -> None:
    _, fits = both(tiny_folder, Placement("auto", {"cpu": "1GiB"}))
    assert why_divided(fits) is None
    assert open_reader(fits).name == "lean"


def test_quantised_weights_are_not_divided(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ModelError, match="GPTQ weights are read on one device only"):
        load_model(tmp_path, dtype=torch.float32, placement=FETCHED)


def test_only_cuda_devices_are_waited_for() -> None:
    assert cuda_devices("cpu", "cuda:1", torch.device("cuda", 0), "cuda:1", "meta") == ("cuda:1", "cuda:0")
