"""Layers on several devices, without any: devices that only differ in name, and tensors that only have a device."""

from collections.abc import Callable
from queue import Queue
from threading import Thread
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from factory.anatomy.families import anatomy_of
from factory.decoding.cache import RowCache
from factory.decoding.decoder import Limits, autoregressive
from factory.decoding.eager import EagerReader
from factory.decoding.leading import LeadingReader, follow
from factory.decoding.readers import open_reader
from factory.decoding.sampling import Noise, Sampling
from factory.decoding.spread import SpreadCache
from factory.models.placement import layer_devices

FIRST, SECOND = torch.device("cpu"), torch.device("cpu", 1)
PROMPTS = [[1, 5, 9, 11], [1, 7], [3]]
LIMITS = Limits(40, frozenset(range(2, 8)), 160)  # of so many ends that rows leave one by one


def test_caches_by_device_hold_what_one_cache_holds(tiny: Callable[..., PreTrainedModel]) -> None:
    model = tiny()
    plain, spread = EagerReader(model), EagerReader(model)
    spread._cache = SpreadCache([FIRST, SECOND, FIRST, SECOND])
    written = [
        autoregressive(reader, PROMPTS, Sampling(temperature=1.0), LIMITS, Noise(0, range(3)))
        for reader in (plain, spread)
    ]
    assert written[0] == written[1]
    assert len({len(one.tokens) for one in written[0]}) > 1  # rows have left
    for layer in range(4):
        pair = [reader._cache.get_mask_sizes(1, layer) for reader in (plain, spread)]
        assert pair[0] == pair[1] and pair[0][0] > 0


def divided(model: PreTrainedModel) -> PreTrainedModel:
    """The model's first two layers and its tables on one device, all else on the other, with the hooks to match."""
    layers = anatomy_of(model.config.to_dict()).layers
    where: dict[str, str] = {}
    for name, _ in model.named_modules():
        outer = any(name == known or name.startswith(f"{known}.") for known in where)
        inner = layers.startswith(f"{name}.") or name in ("", layers)
        if outer or inner:
            continue
        number = name.removeprefix(f"{layers}.").split(".")[0] if name.startswith(f"{layers}.") else ""
        first = int(number) < 2 if number else "embed" in name or name.endswith(("wte", "wpe", "drop", "rotary_emb"))
        where[name] = str(FIRST if first else SECOND)
    for name, module in model.named_modules():
        device = next((place for known, place in where.items() if name == known or name.startswith(f"{known}.")), None)
        for key, part in module._parameters.items():
            if part is not None:
                made = torch.empty(part.shape, dtype=part.dtype, device=device)
                module._parameters[key] = torch.nn.Parameter(made, requires_grad=False)
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
    skipped = model._skip_keys_device_placement
    return dispatch_model(model, where, main_device=str(FIRST), skip_keys=skipped)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_no_tensor_meets_one_of_another_device(tiny: Callable[..., PreTrainedModel]) -> None:
    config = tiny().config
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = divided(AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval())
        assert layer_devices(model) == [FIRST, FIRST, SECOND, SECOND]
        reader = open_reader(model)
        assert (reader.name, reader.why) == ("eager", "its layers lie on cpu and cpu:1")
        reader.start(2, 12)
        tokens = torch.zeros(2, 3, dtype=torch.long, device=reader.device)
        assert reader.feed_last(tokens, [3, 2]).device == FIRST  # a prompt, ragged
        assert reader.feed(tokens, [3, 1]).device == FIRST  # scattered, masked
        reader.rewind([4, 2])
        reader.feed(tokens)
        reader.select([1])
        for _ in range(5):  # past every family's window, and the cache has to grow
            logits = reader.feed(tokens[:1])
        assert (logits.shape, logits.device) == ((1, 3, 96), FIRST)
        reader._cache = RowCache(4)  # all layers' keys where the first one's are
        reader.start(1, 12)
        with pytest.raises(RuntimeError, match="same device"):
            reader.feed(tokens[:1])


def test_followers_make_every_pass_that_the_leader_makes(tiny: Callable[..., PreTrainedModel]) -> None:
    model = tiny()
    alone, led, following = (EagerReader(model) for _ in range(3))
    orders: Queue[Any] = Queue()
    passes: list[torch.Tensor] = []

    def kept(_model: Any, _given: Any, output: Any) -> None:
        passes.append(output.logits)

    second = tiny()  # the same weights, in another process as it were
    following = EagerReader(second)
    second.register_forward_hook(kept)
    follower = Thread(target=follow, args=(following, second, lambda _: orders.get()))
    follower.start()
    leading = LeadingReader(led, model, orders.put)
    found = autoregressive(leading, PROMPTS, Sampling(), LIMITS, Noise(0, range(3)))
    with torch.no_grad():
        uncached = model(input_ids=torch.tensor([PROMPTS[0]]), use_cache=False).logits
    orders.put(None)
    follower.join()
    assert found == autoregressive(alone, PROMPTS, Sampling(), LIMITS, Noise(0, range(3)))
    assert leading.lengths == led.lengths == following.lengths == alone.lengths
    assert torch.equal(passes[-1], uncached)
    assert len(passes) == 1 + max(one.target_passes for one in found)
