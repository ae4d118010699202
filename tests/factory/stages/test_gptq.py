"""Real gptqmodel on tiny random models. Its import takes seconds, so every test here works on what one fixture made."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
)

from factory.anatomy.families import shape_from_config
from factory.data.blocks import TextBlocks, text_blocks
from factory.errors import FactoryError, ModelError, UnsupportedModel
from factory.models.located import read_config
from factory.models.quantized import gptqmodel
from factory.stages import Given, Gptq
from factory.stages.gptq import compare

pytestmark = pytest.mark.slow

ON_CPU = not torch.cuda.is_available()  # the kernels are known by name there
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox", "opt")
VOCABULARY = 128


def tiny_config(family: str, hidden: int = 64, ffn: int = 128) -> Any:
    """Two layers, every width a multiple of 32. Rotary families have half as many key and value heads as they can."""
    common = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "dtype": "float32"}
    sizes = {"hidden_size": hidden, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 160}
    own: dict[str, Any] = {"intermediate_size": ffn, "initializer_range": 0.5, "tie_word_embeddings": False}
    if family == "gpt2":
        sizes = {"n_embd": hidden, "n_layer": 2, "n_head": 4, "n_positions": 160, "n_inner": ffn}
        own = {"initializer_range": 0.5}
    elif family == "opt":
        own = {"ffn_dim": ffn, "word_embed_proj_dim": hidden, "init_std": 0.5}
    elif family != "gpt_neox":
        own |= {"num_key_value_heads": 2, "head_dim": hidden // 4}
    if family == "mistral":
        own["sliding_window"] = None
    return AutoConfig.for_model(family, **common, **sizes, **own)


def save_tiny(family: str, folder: Path, **widths: int) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(tiny_config(family, **widths), dtype=torch.float32).eval().save_pretrained(folder)
    words = {f"w{index}": index for index in range(VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0", bos_token="w1", eos_token="w2").save_pretrained(
        folder
    )
    return folder


def some_text(rows: int, seed: int) -> TextBlocks:
    """Ragged rows, some shorter than the ten tokens that gptqmodel would drop."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(6, 40, (rows,), generator=generator).tolist()
    return text_blocks([(torch.randint(3, VOCABULARY, (n,), generator=generator).tolist(), 4) for n in lengths])


def given(tmp_path: Path, held_out: TextBlocks | None = None) -> Given:
    def no_target() -> Any:
        raise AssertionError("GPTQ needs no target")

    return Given(no_target, some_text(32, 0), held_out, 0, tmp_path / "checkpoint", lambda *_: None)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def tensor_bytes(folder: Path) -> int:
    return sum(
        tensor.nbytes for file in folder.glob("*.safetensors") for tensor in load_file(file).values()
    )  # a safetensors header is a tenth of a tiny file


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return save_tiny("llama", tmp_path / "llama")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_comes_back_as_it_was_in_memory(
    family: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, destination = save_tiny(family, tmp_path / "source"), tmp_path / "out"
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    before = contents(source)
    stage = Gptq(kind="gptq", group_size=32)
    facts = stage.quantize(source, destination, given(tmp_path, some_text(8, 1)))

    assert contents(source) == before
    assert list(here.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert json.loads(json.dumps(facts)) == facts
    assert facts["loader"] == ("gptqmodel" if family == "gpt2" else "transformers")
    assert bool(facts["why_loader"]) == (family == "gpt2")
    if ON_CPU:
        assert facts["kernel"] == ("TorchFusedLinear" if family == "gpt2" else "TorchAtenLinear")
        assert facts["only_saves_size"] is None
    assert (
        0 < facts["reload"]["relative_error"] <= facts["reload"]["allowed"] <= 0.5
    )  # these models are chaotic; unrelated ones differ by 1.4
    # unrelated logits have a relative error of 1.4; unrelated predictions share little
    assert facts["divergence"]["relative_error"] < 0.7
    assert facts["divergence"]["overlap"] > 0.4
    assert facts["divergence"]["forward_kl"] > 0.01
    assert facts["measured_on_held_out"] is True
    unchanged = {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    assert {name: contents(destination)[name] for name in unchanged} == {name: before[name] for name in unchanged}
    stored = read_config(destination)
    assert stored.pop("quantization_config")["checkpoint_format"] == "gptq"
    assert stored == read_config(source)
    shape = shape_from_config(read_config(source))
    assert stage.forecast(shape).weight_bytes == pytest.approx(tensor_bytes(destination), rel=0.02)


@pytest.mark.parametrize(
    ("settings", "kernel", "largest_error"),
    [
        ({"bits": 2, "sym": False}, "TorchLinear", 1.3),
        ({"bits": 3, "act_order": True}, "TorchLinear", 1.1),
        ({"bits": 8, "group_size": 64}, "TorchLinear", 0.1),
        ({"bits": 4, "group_size": -1}, "TorchFusedLinear", 0.7),
        ({"bits": 4, "group_size": 64, "sym": False, "act_order": True}, "TorchAtenLinear", 0.7),
    ],
)
def test_bits_groups_zero_and_order(
    settings: dict[str, Any], kernel: str, largest_error: float, llama: Path, tmp_path: Path
) -> None:
    stage = Gptq(kind="gptq", **{"group_size": 32, **settings})
    facts = stage.quantize(llama, tmp_path / "out", given(tmp_path))
    if ON_CPU:
        assert facts["kernel"] == kernel
    assert ("only saves size" in (facts["only_saves_size"] or "")) == (facts["kernel"] == "TorchLinear")
    assert facts["divergence"]["relative_error"] < largest_error
    assert facts["measured_on_held_out"] is False
    described = read_config(tmp_path / "out")["quantization_config"]
    assert (described["bits"], described["group_size"]) == (stage.bits, stage.group_size)
    assert (described["sym"], described["desc_act"]) == (stage.sym, stage.act_order)
    # no biases in a Llama: to the byte
    assert stage.forecast(shape_from_config(read_config(llama))).weight_bytes == tensor_bytes(tmp_path / "out")


def test_the_forecast_is_within_two_percent_of_a_real_file_and_the_output_is_a_function_of_the_input(
    tmp_path: Path,
) -> None:
    source = save_tiny("llama", tmp_path / "source", hidden=256, ffn=512)
    stage, written = Gptq(kind="gptq", samples=16), []
    for name in ("one", "two"):
        stage.quantize(source, tmp_path / name, given(tmp_path))
        written.append(contents(tmp_path / name))
    assert written[0] == written[1]
    size = (tmp_path / "one" / "model.safetensors").stat().st_size
    assert stage.forecast(shape_from_config(read_config(source))).weight_bytes == pytest.approx(size, rel=0.02)


def forget_the_format(folder: Path) -> None:
    """optimum's own fault: the tensors are v1, the config says v2, and every zero is off by one."""
    config = read_config(folder)
    config["quantization_config"] |= {"checkpoint_format": "gptq_v2", "format": "gptq_v2"}
    (folder / "config.json").write_text(json.dumps(config))


def flip_one_bit(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.qweight"][3, 5] ^= 1
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (forget_the_format, "is another model than the one in memory"),
        (flip_one_bit, r"layers\.1\.mlp\.up_proj\.qweight"),
    ],
)
def test_a_folder_that_does_not_hold_the_model_is_refused(
    damage: Callable[[Path], None], message: str, llama: Path, tmp_path: Path
) -> None:
    stage, rows = Gptq(kind="gptq", group_size=32, sym=False), some_text(16, 0)
    quantizer = stage.write(llama, tmp_path / "out", rows, "cpu")
    damage(tmp_path / "out")
    with pytest.raises(FactoryError, match=message):
        compare(llama, tmp_path / "out", quantizer, rows, "cpu")


@pytest.mark.parametrize("backend", ["auto-gptq", "auto_gptq", "optimum"])
def test_backends_of_the_past_are_named_as_such(backend: str) -> None:
    with pytest.raises(ValidationError, match=r"archived.*gptqmodel is its continuation: remove the key"):
        Gptq(kind="gptq", backend=backend)
    with pytest.raises(ValidationError, match="there is only gptqmodel"):
        Gptq(kind="gptq", backend="awq")
    assert Gptq(kind="gptq", backend="gptqmodel") == Gptq(kind="gptq")


def test_widths_that_no_kernel_takes_are_refused_with_the_nearest_that_are() -> None:
    shape = shape_from_config(tiny_config("llama", hidden=256, ffn=512).to_dict())
    assert Gptq(kind="gptq").forecast(shape).bits == pytest.approx(4 + 20 / 128, abs=0.3)
    with pytest.raises(UnsupportedModel, match=r"FFN 480 .* 384 or 512 for 480; or write `group_size: 32`"):
        Gptq(kind="gptq").forecast(replace(shape, ffn=480))
    with pytest.raises(UnsupportedModel, match=r"FFN 172 .* groups of 32: the nearest widths are 160 or 192 for 172$"):
        Gptq(kind="gptq", group_size=-1).forecast(replace(shape, ffn=172))
    with pytest.raises(UnsupportedModel, match=r"48, must be a multiple of 32: the nearest widths are 32 and 64"):
        Gptq(kind="gptq").forecast(replace(shape, head_dim=24, heads=16, kv_heads=2, hidden=384))


def test_without_text_there_is_nothing_to_calibrate_on(tmp_path: Path) -> None:
    nothing = replace(given(tmp_path), text=None)
    with pytest.raises(FactoryError, match="give the recipe a `data` section"):
        Gptq(kind="gptq").quantize(tmp_path, tmp_path / "out", nothing)


def test_weights_that_are_no_numbers_are_refused_before_gptqmodel_sees_them(llama: Path, tmp_path: Path) -> None:
    stored = load_file(llama / "model.safetensors")
    stored["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(stored, llama / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"up_proj\.weight holds NaN"):
        Gptq(kind="gptq", group_size=32).quantize(llama, tmp_path / "out", given(tmp_path))


def test_a_failing_thread_of_gptqmodel_does_not_end_the_process() -> None:
    gptqmodel()
    from gptqmodel.utils import threadx

    threadx._DeviceWorker._abort_process(None, RuntimeError("it would end pytest"))
