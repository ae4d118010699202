"""Write the drafter's layers in 2, 3, 4 or 8 bits a weight."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from factory.anatomy.shapes import Shape
from factory.errors import FactoryError, UnsupportedModel
from factory.given import Given
from factory.progress import Progress, silent, step
from factory.stages.base import QuantizingStage

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from factory.data.blocks import TextBlocks

MEASURED_ROWS = 32  # held-out rows that agreement and divergence are measured on
WORD = 32  # codes are packed into 32-bit words, and kernels take 32 columns at a time
GROUPS = (128, 64, 32)
GONE = ("auto-gptq", "auto_gptq", "autogptq", "optimum")


class Gptq(QuantizingStage):
    """GPTQ (Frantar et al., arXiv 2210.17323), by gptqmodel: round column by column, let the rest make up for it.

    What it minimises is the error of each layer's output on calibration text, so that text must be
    what the drafter will read: the target's own. Embedding, head, norms and biases stay as they are.
    """

    kind: Literal["gptq"] = Field(description="write the layers in 2, 3, 4 or 8 bits a weight; the last stage")
    bits: Literal[2, 3, 4, 8] = Field(default=4, description="of one weight; scales and zeros come on top")
    group_size: Literal[32, 64, 128, -1] = Field(
        default=128, description="inputs that share a scale; -1: all inputs of an output"
    )
    sym: bool = Field(default=True, description="zero in the middle of the range; fewer kernels know false")
    act_order: bool = Field(default=False, description="round the columns with the largest inputs first")
    samples: int = Field(default=128, ge=1, description="rows of text to calibrate on")
    damp: float = Field(default=0.05, gt=0, lt=1, description="added to the Hessian's diagonal, as a share of its mean")
    backend: str = Field(default="gptqmodel", description="the one library there is")

    @field_validator("backend")
    @classmethod
    def _only_gptqmodel(cls, backend: str) -> str:
        if backend.lower() in GONE:
            raise ValueError(
                f"{backend} is not used: auto-gptq is archived and no longer imports beside current transformers; "
                "gptqmodel is its continuation: remove the key `backend`"
            )
        if backend != "gptqmodel":
            raise ValueError(f"{backend!r} is no backend; there is only gptqmodel: remove the key `backend`")
        return backend

    def forecast(self, shape: Shape) -> Shape:
        """The shape with `bits` as the v1 format stores them: codes, scales and zeros, and each input's group.

        Raises UnsupportedModel where a width does not divide: gptqmodel itself would write a folder
        that its kernels refuse, read past the end of, or crash on.
        """
        step = max(self.group_size, WORD)
        inputs = {"hidden size": shape.hidden, "query heads times head size": shape.query_width, "FFN": shape.ffn}
        unfit = {name: width for name, width in inputs.items() if width % step}
        if unfit:
            fitting = [group for group in GROUPS if not any(width % group for width in inputs.values())]
            named = " and ".join(f"{name} {width}" for name, width in unfit.items())
            legal = {w: dict.fromkeys((w // step * step or step, -(-w // step) * step)) for w in unfit.values()}
            nearest = ", ".join(f"{' or '.join(map(str, widths))} for {w}" for w, widths in sorted(legal.items()))
            smaller = f"; or write `group_size: {fitting[0]}`" if fitting else ""
            raise UnsupportedModel(
                f"gptq: {named} cannot be cut into groups of {step}: the nearest widths are {nearest}{smaller}"
            )
        if shape.kv_width % WORD:
            near = shape.kv_width // WORD * WORD
            raise UnsupportedModel(
                f"gptq: key and value heads times head size, {shape.kv_width}, must be a multiple of {WORD}: "
                f"the nearest widths are {near or WORD} and {near + WORD}"
            )
        stored = 0
        for width, outputs in shape.layer_matrices:
            groups = 1 if self.group_size == -1 else width // self.group_size
            stored += self.bits * width * outputs  # qweight
            stored += (16 + self.bits) * groups * outputs  # scales, qzeros
            stored += 32 * width  # g_idx
        return replace(shape, bits=stored / shape.layer_parameters)

    def quantize(self, source: Path, destination: Path, given: Given) -> dict[str, Any]:
        """Calibrate, write, read back, compare.

        Returns for the manifest: the format, the kernel that runs it on this device, and what the
        rounding cost on held-out text. Raises FactoryError, where the folder does not hold what was
        in memory too; UnsupportedModel; ModelError where gptqmodel is not installed.
        """
        from factory.anatomy.families import anatomy_of, shape_from_config
        from factory.models.loading import resolve_device
        from factory.models.located import read_config
        from factory.models.quantized import loader_of, only_saves_size
        from factory.models.shards import Shards

        if given.text is None or len(given.text) == 0:
            raise FactoryError("gptq: there is no text to calibrate on; give the recipe a `data` section")
        config = read_config(source)
        effective_bits = self.forecast(shape_from_config(config)).bits
        rows = given.text.rows(range(min(self.samples, len(given.text))))
        held_out = given.held_out if given.held_out is not None and len(given.held_out) else None
        device = resolve_device("auto")
        shards = Shards(source, anatomy_of(config), tied=shape_from_config(config).tied)
        for name in shards.names:  # a NaN would end gptqmodel in a thread of its own
            shards.read(name)
        quantizer = self.write(source, destination, rows, device, given.progress)
        with step(given.progress, "comparing what was written with what was rounded"):
            measured = compare(source, destination, quantizer, held_out or rows, device)
        return {
            "weight_format": "gptq",
            "bits": self.bits,
            "effective_bits": effective_bits,
            "group_size": self.group_size,
            "sym": self.sym,
            "act_order": self.act_order,
            "rows": len(rows),
            "tokens": int(rows.length.sum()),
            "loader": loader_of(config),
            "why_loader": anatomy_of(config).why_gptqmodel,
            "device": device,
            "only_saves_size": only_saves_size(device, measured["kernel"]),
            "measured_on_held_out": held_out is not None,
            **measured,
        }

    def write(self, source: Path, destination: Path, rows: TextBlocks, device: str, progress: Progress = silent) -> Any:
        """Write the quantised folder; returns gptqmodel's object with the `model` in memory that it was written from.

        The tokenizer and every config key but the quantisation's come from `source` unchanged:
        gptqmodel would invent a padding token. Raises FactoryError.
        """
        from factory.models.quantized import gptqmodel, quiet
        from factory.surgery.carving import copy_beside

        library = gptqmodel()
        source, length = source.resolve(), rows.length.tolist()
        calibration = [
            {"input_ids": ids[:count], "attention_mask": [1] * count}
            for ids, count in zip(rows.ids.tolist(), length, strict=True)
        ]
        config = json.loads((source / "config.json").read_text())
        settings = library.QuantizeConfig(
            bits=self.bits,
            group_size=self.group_size,
            sym=self.sym,
            desc_act=self.act_order,
            act_group_aware=not self.act_order and self.group_size != -1,
            damp_percent=self.damp,
            device=device,
            fallback=None,  # else a layer that GPTQ fails on is rounded to nearest without a word
            offload_to_disk=False,  # rotary tables would be lost, and GPT-NeoX cannot be read so
            pack_impl="original",  # the other one compiles C++ first
        )
        with tempfile.TemporaryDirectory() as scratch, _with_padding(source, config) as padded:
            try:
                with quiet():
                    quantizer = library.GPTQModel.load(
                        str(padded), settings, dtype=_dtype(config), trust_remote_code=False
                    )
                    layers = _LayersDone(progress, int(quantizer.model.config.num_hidden_layers), self.bits)
                    quantizer.layer_callback = layers
                    quantizer.quantize(calibration, batch_size=1, calibration_data_min_length=1)
                    layers.end()
                    with step(progress, "saving what was rounded"):
                        quantizer.save(scratch)
            except Exception as error:  # whatever it raises, this is what it means
                first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise FactoryError(
                    f"gptq: gptqmodel could not quantise {source}: {first_line}; "
                    f"try more text (`samples: {2 * self.samples}`) or a larger `damp` ({self.damp})"
                ) from error
            destination.mkdir(parents=True, exist_ok=True)
            copy_beside(source, destination)
            for file in Path(scratch).glob("model*.safetensors*"):
                shutil.move(file, destination)
            described = json.loads((Path(scratch) / "config.json").read_text())["quantization_config"]
        config = {**config, "dtype": str(_dtype(config)).removeprefix("torch."), "quantization_config": described}
        (destination / "config.json").write_text(json.dumps(config, indent=2))
        return quantizer


class _LayersDone:
    """What gptqmodel calls whenever a layer is rounded, and again when it is packed."""

    def __init__(self, progress: Progress, layers: int, bits: int) -> None:
        self._progress, self._layers, self._what = progress, layers, f"rounding to {bits} bits"
        progress(0, layers, self._what)

    def layer_complete(self, layer_idx: int, submodule_finalized: bool) -> None:
        """Packing may come later, in threads of the library's own."""
        if not submodule_finalized and layer_idx + 1 < self._layers:
            self._progress(layer_idx + 1, self._layers, self._what)

    def end(self) -> None:
        """All are rounded and packed."""
        self._progress(self._layers, self._layers, self._what)


@contextmanager
def _with_padding(source: Path, config: dict[str, Any]) -> Iterator[Path]:
    """The folder again, its weights linked, with a padding token where it names none.

    gptqmodel would take one from a list by family, which may lie outside this vocabulary. Nothing is
    padded here, so any id will do that is not BOS or EOS, which it would replace again.
    """
    taken = set()
    for key in ("bos_token_id", "eos_token_id"):
        ids = config.get(key)
        taken |= set(ids) if isinstance(ids, list) else {ids}
    free = next(token for token in range(config["vocab_size"]) if token not in taken)
    named = config.get("pad_token_id")
    padding = free if named is None or named in taken else named
    with tempfile.TemporaryDirectory() as folder:
        for file in source.iterdir():
            if file.name != "config.json":
                (Path(folder) / file.name).symlink_to(file)
        (Path(folder) / "config.json").write_text(json.dumps({**config, "pad_token_id": padding}))
        yield Path(folder)


def compare(source: Path, destination: Path, quantizer: Any, text: TextBlocks, device: str) -> dict[str, Any]:
    """The folder read back, against the model it was written from and the unquantised one, on answer tokens.

    Every stored tensor must be what memory holds, bit for bit. Logits cannot be: the kernels compute
    in half precision, scales included. What half precision does to this very model is measured by running the
    *unquantised* one in bfloat16; ten times that much is allowed, and never more than half of the
    logits' norm (unrelated logits differ by 1.4 of it). Raises FactoryError beyond either.

    Leaves the model in memory converted for running: compare once.
    """
    import torch

    from factory.models.loading import load_model
    from factory.models.quantized import gptqmodel, kernel_of, quiet
    from factory.tensors.divergences import forward_kl, overlap

    differing = _differing(destination, quantizer.model)
    if differing:
        raise FactoryError(f"gptq: {destination} does not hold what was in memory: {', '.join(differing)}; report this")
    gptqmodel()
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format

    with quiet():  # memory holds what is stored (v1, zeros less one); kernels compute with v2
        convert_gptq_v1_to_v2_format(quantizer.model, quantizer.quantize_config, quantizer.qlinear_kernel)
    quantizer.model.to(device)  # what was quantised on a GPU was packed on the host, the rest may be anywhere
    rows = [text.rows([index]) for index in range(min(MEASURED_ROWS, len(text)))]
    squares = dict.fromkeys(("plain", "half", "memory", "reloaded", "quantized"), 0.0)
    divergence, shared, count = 0.0, 0.0, 0
    plain = load_model(source, dtype=torch.float32, device=device)
    half = load_model(source, dtype=torch.bfloat16, device=device)
    for row in rows:
        expected = _answer_logits(plain, row)
        squares["plain"] += expected.square().sum().item()
        squares["half"] += (_answer_logits(half, row) - expected).square().sum().item()
    del half  # never more than two unquantised ones at once
    reloaded = load_model(destination, dtype=_dtype(json.loads((source / "config.json").read_text())), device=device)
    for row in rows:
        expected, memory, stored = (_answer_logits(model, row) for model in (plain, quantizer.model, reloaded))
        squares["memory"] += memory.square().sum().item()
        squares["reloaded"] += (stored - memory).square().sum().item()
        squares["quantized"] += (stored - expected).square().sum().item()
        log_p, log_q = expected.log_softmax(-1), stored.log_softmax(-1)
        divergence += forward_kl(log_p, log_q)[0].sum().item()
        shared += overlap(log_p, log_q).sum().item()
        count += len(expected)
    if count == 0:
        raise FactoryError("gptq: no row of the text has an answer token to compare on; give the recipe longer `data`")
    error = math.sqrt(squares["reloaded"] / squares["memory"])
    allowed = min(0.5, 10 * math.sqrt(squares["half"] / squares["plain"]) + 1e-3)
    if not error <= allowed:  # not so for NaN either
        raise FactoryError(
            f"gptq: {destination}, read back, is another model than the one in memory: its logits differ by "
            f"{error:.3f} of their norm, where {allowed:.3f} is rounding. Nothing of it is kept; report this"
        )
    return {
        "kernel": kernel_of(reloaded),
        "dtype": str(reloaded.dtype).removeprefix("torch."),
        "reload": {"relative_error": error, "allowed": allowed},
        "divergence": {
            "relative_error": math.sqrt(squares["quantized"] / squares["plain"]),
            "forward_kl": divergence / count,
            "overlap": shared / count,
            "tokens": count,
        },
    }


def _answer_logits(model: PreTrainedModel, row: TextBlocks) -> torch.Tensor:  # [N, V] float32, on the CPU
    import torch

    from factory.models.loading import hidden_states

    with torch.inference_mode():
        states = hidden_states(model, row.ids.to(model.device), row.answer_mask.to(model.device))
        logits: torch.Tensor = model.get_output_embeddings()(states)
    return logits.float().cpu()


def _differing(folder: Path, model: PreTrainedModel) -> list[str]:
    """Names of stored tensors that are not the model's, bit for bit, and of quantised ones that are not stored."""
    import torch
    from safetensors.torch import load_file

    held, stored = model.state_dict(), {}
    for file in sorted(folder.glob("*.safetensors")):
        stored.update(load_file(file))
    missing = [name for name in held if name.endswith((".qweight", ".qzeros", ".scales")) and name not in stored]
    same = {name for name, tensor in stored.items() if name in held and torch.equal(tensor, held[name].cpu())}
    return sorted({*stored} - same) + missing


def _dtype(config: dict[str, Any]) -> torch.dtype:
    """What all that is not quantised is stored in: as in the source."""
    import torch

    from factory.models.loading import DTYPES

    dtype = DTYPES.get(str(config.get("dtype", config.get("torch_dtype"))), torch.float32)
    return torch.float32 if dtype is torch.float64 else dtype
