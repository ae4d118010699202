"""Loading what the stage `gptq` wrote, and drafting with it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from factory.data.blocks import text_blocks
from factory.decoding.decoder import Limits, autoregressive, speculative
from factory.decoding.drafters import ModelDrafter
from factory.decoding.eager import EagerReader
from factory.decoding.graphed import GraphedReader
from factory.decoding.lean import LeanReader
from factory.decoding.reader import Reader
from factory.decoding.readers import open_reader
from factory.decoding.sampling import Noise, Sampling
from factory.decoding.wiring import network_of, why_not
from factory.errors import ModelError
from factory.models.loading import hidden_states, load_model
from factory.models.located import read_config
from factory.models.quantized import (
    _backends,
    is_kernel,
    is_quantized,
    kernel_of,
    loader_of,
    only_saves_size,
    passed_over,
)
from factory.stages import Gptq

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox", "opt")
GREEDY = Sampling()
IDS = torch.arange(3, 43).view(2, 20)
EVERYWHERE = torch.ones_like(IDS, dtype=torch.bool)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of each family, widths in multiples of 32."""
    folders = {}
    for family in FAMILIES:
        torch.manual_seed(0)
        common = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "dtype": "float32"}
        sizes: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        sizes |= {"max_position_embeddings": 160, "initializer_range": 0.5, "init_std": 0.5, "sliding_window": None}
        sizes |= {"ffn_dim": 128} if family == "opt" else {"intermediate_size": 128, "tie_word_embeddings": False}
        if family == "opt":
            sizes["word_embed_proj_dim"] = 64
        elif family not in ("gpt2", "gpt_neox"):
            sizes |= {"num_key_value_heads": 2, "head_dim": 16}
        config = AutoConfig.for_model(family, **common, **sizes)
        folders[family] = tmp_path_factory.mktemp(family) / "plain"
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().save_pretrained(folders[family])
        words = Tokenizer(WordLevel({f"w{index}": index for index in range(96)}, unk_token="w0"))
        PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(folders[family])
    return folders


@pytest.fixture(scope="module")
def quantized(plain: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same in 4 bits, and a GPT-2 in 8, for which there is no float32 kernel."""
    generator = torch.Generator().manual_seed(0)
    rows = text_blocks([(torch.randint(3, 96, (30,), generator=generator).tolist(), 4) for _ in range(16)])
    folders = {}
    for name, family, bits in [*((family, family, 4) for family in FAMILIES), ("gpt2-8", "gpt2", 8)]:
        folders[name] = tmp_path_factory.mktemp(name) / "quantized"
        stage = Gptq(kind="gptq", bits=bits, group_size=32)  # type: ignore[arg-type]
        stage.write(plain[family], folders[name], rows, "cpu")
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_quantised_drafter_loses_nothing_of_a_float64_target(
    family: str, plain: dict[str, Path], quantized: dict[str, Path]
) -> None:
    target = load_model(plain[family], dtype=torch.float64)
    drafter = load_model(quantized[family], dtype=torch.float64)
    assert drafter.dtype is torch.float32  # no kernel has float64
    assert not drafter.training
    assert not any(parameter.requires_grad for parameter in drafter.parameters())
    prompts = [[1, 5, 9, 4], [7, 8], [20, 21, 22, 23, 24, 25, 26]]
    limits, noise = Limits(max_new_tokens=40, eos=frozenset(), context=160), Noise(0, [0, 1, 2])
    expected = autoregressive(EagerReader(target), prompts, GREEDY, limits, noise)
    made = speculative(
        EagerReader(target), ModelDrafter(LeanReader(drafter)), prompts, 4, GREEDY, limits, Noise(0, [0, 1, 2])
    )
    assert [one.tokens for one in made] == [one.tokens for one in expected]
    assert sum(sum(one.accepted) for one in made) > 10  # it does draft: chance would be right once in 96 guesses
    assert sum(one.target_passes for one in made) < sum(one.target_passes for one in expected)


def script(reader: Reader) -> torch.Tensor:
    """Logits of a prompt, single tokens, ragged runs, a rewind: [all, V]."""
    ids = torch.randint(3, 90, (2, 24), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        reader.start(2, 40)
        found = [reader.feed(ids[:, :7]), reader.feed(ids[:, 7:8])]
        ragged = reader.feed(ids[:, 8:13], [2, 5])
        found += [ragged[0, :2], ragged[1]]
        reader.rewind([9, 8])
        found.append(reader.feed(ids[:, 13:17]))
    return torch.cat([logits.flatten(0, -2) for logits in found])


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_own_forward_pass_computes_what_the_modules_do(family: str, quantized: dict[str, Path]) -> None:
    """Through exact products in place of the kernels first, whose bfloat16 inside turns each rounding into a step."""
    model = load_model(quantized[family], dtype=torch.float32)
    assert why_not(model) is None
    assert not network_of(model).traceable
    kernels = script(EagerReader(model)), script(LeanReader(model))
    spread = kernels[0].std(dim=-1, keepdim=True)
    assert ((kernels[1] - kernels[0]) / spread).abs().max() < 0.2
    for module in [module for module in model.modules() if is_kernel(module)]:
        with torch.no_grad():
            bias = module(torch.zeros(1, module.in_features))
            weight = module(torch.eye(module.in_features)) - bias
        module.forward = lambda x, weight=weight, bias=bias: x @ weight + bias
    exact = script(EagerReader(model)), script(LeanReader(model)), script(GraphedReader(model))
    torch.testing.assert_close(exact[1], exact[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(exact[2], exact[0], rtol=0, atol=1e-4)
    assert (exact[0] - kernels[0]).abs().max() < spread.max()  # they do stand for the kernels


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2"])  # one for each loader
def test_another_kernel_can_be_asked_for(
    family: str, quantized: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = load_model(quantized[family], dtype=torch.bfloat16)
    monkeypatch.setattr("factory.models.quantized._backends", lambda _: ("no such kernel", "gptq_torch"))
    other = load_model(quantized[family], dtype=torch.bfloat16)
    assert kernel_of(usual) != kernel_of(other) == "TorchLinear"
    assert passed_over(usual) is None
    assert str(passed_over(other)).startswith("no such kernel: ")
    expected, found = (hidden_states(model, IDS, EVERYWHERE).float() for model in (usual, other))
    assert (found - expected).norm() < 0.1 * expected.norm()


def test_kernels_that_must_be_compiled_are_for_where_a_compiler_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _backends("cpu") == ("auto",)
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", None)
    assert _backends("cuda:0") == ("gptq_triton", "gptq_torch")
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", str(tmp_path))
    assert _backends("cuda:0") == ("gptq_triton", "gptq_torch")  # a runtime without a compiler
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").touch(mode=0o755)
    assert _backends("cuda:0") == ("auto", "gptq_triton", "gptq_torch")


@pytest.mark.slow
def test_readers_of_a_quantised_model(quantized: dict[str, Path]) -> None:
    model = load_model(quantized["llama"], dtype=torch.float32)
    assert open_reader(model, "lean").why is None
    auto = open_reader(model)
    assert (auto.name, auto.why) == ("packed", None)  # the head alone
    asked = open_reader(model, "compiled")
    assert asked.name == "packed"
    assert "gptqmodel's kernels, which are not compiled" in str(asked.why) or "C++ compiler" in str(asked.why)


@pytest.mark.slow
def test_a_quantised_model_runs_in_the_dtype_that_its_kernels_take(quantized: dict[str, Path]) -> None:
    for name, asked, runs in [
        ("llama", torch.float32, torch.float32),
        ("llama", torch.bfloat16, torch.bfloat16),
        ("llama", torch.float16, torch.float16),
        ("gpt2", torch.float32, torch.float32),
        ("gpt2-8", torch.float64, torch.bfloat16),
    ]:
        model = load_model(quantized[name], dtype=asked)
        assert model.dtype is runs, (name, asked)
        assert torch.isfinite(hidden_states(model, IDS, EVERYWHERE)).all()
        assert only_saves_size("cpu", kernel_of(model)) is None or name == "gpt2-8"


@pytest.mark.slow
def test_plain_models_compute_what_they_did_before_the_library_was_imported(
    plain: dict[str, Path], quantized: dict[str, Path], tmp_path: Path
) -> None:
    """gptqmodel patches transformers as it is imported: compared with a process that never did."""
    script = (
        "import sys, torch; from factory.models.loading import load_model; torch.set_num_threads(1)\n"
        "ids = torch.arange(3, 43).view(2, 20)\n"
        "logits = [load_model(name, dtype=torch.float64)(input_ids=ids).logits for name in sys.argv[2:]]\n"
        "assert 'gptqmodel' not in sys.modules; torch.save(logits, sys.argv[1])"
    )
    folders = [str(folder) for folder in plain.values()]
    run = [sys.executable, "-c", script, str(tmp_path / "logits.pt"), *folders]
    silent = subprocess.run(run, check=True, capture_output=True, text=True)
    assert (silent.stdout, silent.stderr) == ("", "")  # nor does torchao's import print anything
    expected = torch.load(tmp_path / "logits.pt", weights_only=True)
    load_model(quantized["llama"], dtype=torch.float32)
    assert "gptqmodel" in sys.modules
    for folder, logits in zip(folders, expected, strict=True):
        model = load_model(folder, dtype=torch.float64)
        assert kernel_of(model) == ""
        assert torch.equal(model(input_ids=IDS).logits, logits), folder


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_damaged_folder_is_a_model_error(family: str, quantized: dict[str, Path], tmp_path: Path) -> None:
    for file in quantized[family].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot load"):
        load_model(tmp_path, dtype=torch.float32)
    weights.unlink()
    with pytest.raises(ModelError, match="cannot load"):
        load_model(tmp_path, dtype=torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["gptqmodel", "optimum.gptq"])
def test_without_the_extra_it_says_what_to_install(
    missing: str, quantized: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)  # what import does where a package is not installed
    with pytest.raises(ModelError, match=r"pip install 'drafter-factory\[gptq\]'"):
        load_model(quantized["llama"], dtype=torch.float32)


def test_what_is_a_quantised_folder(plain: dict[str, Path], tmp_path: Path) -> None:
    assert not is_quantized(plain["llama"])
    assert not is_quantized(tmp_path)
    assert not is_quantized(tmp_path / "no such folder")
    for text, expected in [
        ('{"quantization_config": {"quant_method": "gptq"}}', True),
        ('{"quantization_config": {"quant_method": "awq"}}', False),
        ('{"quantization_config": null}', False),
        ("[]", False),
        ("{", False),
    ]:
        (tmp_path / "config.json").write_text(text)
        assert is_quantized(tmp_path) == expected, text


def test_only_gpt2_needs_gptqmodel_to_be_loaded(plain: dict[str, Path]) -> None:
    loaders = {family: loader_of(read_config(folder)) for family, folder in plain.items()}
    assert loaders.pop("gpt2") == "gptqmodel"
    assert set(loaders.values()) == {"transformers"}


def test_a_kernel_that_unpacks_whole_matrices_can_only_save_size() -> None:
    for device in ("cpu", "cuda"):
        assert f"On {device} GPTQ only saves size" in str(only_saves_size(device, "TorchLinear"))
    assert only_saves_size("cpu", "TorchAtenLinear") is None
    assert only_saves_size("cuda", "MarlinLinear") is None
    assert only_saves_size("cpu", "") is None
