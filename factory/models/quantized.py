"""Loads a GPTQ folder, and says which kernel runs it and what that kernel is good for.

gptqmodel is an optional extra, takes seconds to import, and then talks: everything that must be
known about its manners is here. It is imported at the first quantised folder, never before.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from factory.anatomy.families import anatomy_of
from factory.errors import ModelError
from factory.logs import quieten, sink
from factory.models.located import load_failure, read_config

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

INSTALL = "pip install 'drafter-factory[gptq]'"
UNPACKS, UNPACKING = "TorchLinear", "gptq_torch"  # gptqmodel's kernel of last resort, on any device: its two names


def is_quantized(folder: Path) -> bool:
    """Whether that is a folder of GPTQ weights; False where there is no config.json to say so."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    described = config.get("quantization_config") if isinstance(config, dict) else None
    return isinstance(described, dict) and described.get("quant_method") == "gptq"


def loader_of(config: dict[str, Any]) -> str:
    """Which library reads such a folder: `transformers`, or `gptqmodel` where only that one can.

    The reason is `anatomy_of(config).why_gptqmodel`. Raises UnsupportedModel for an unknown family.
    """
    return "gptqmodel" if anatomy_of(config).why_gptqmodel else "transformers"


def kernel_of(model: PreTrainedModel) -> str:
    """The classes that multiply by the quantised weights of a loaded model, by name; empty where there are none."""
    return ", ".join(sorted({type(module).__name__ for module in _quantized_layers(model)}))


def passed_over(model: PreTrainedModel) -> str | None:
    """Why kernels that are faster do not run a loaded model, each by its name at gptqmodel; None where none failed."""
    return getattr(model, "_kernels_passed_over", "") or None


def only_saves_size(device: str, kernel: str) -> str | None:
    """Why the format can bring no speed with that kernel, as a sentence; None where timing must tell.

    Known from what the kernel does, not from a clock: it reads the packed weights, writes them out in
    full and reads them again, where the unquantised drafter only reads them. gptqmodel falls back on
    it where it has nothing better: on a CPU for all but 4 bits, on CUDA where no compiled kernel fits.
    """
    if UNPACKS not in kernel.split(", "):
        return None
    return (
        f"On {device} GPTQ only saves size here: its kernel, {kernel}, unpacks each whole matrix before every product, "
        "so no token can come sooner than from the same drafter unquantised."
    )


def load_quantized(folder: Path, *, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """A causal language model out of a GPTQ folder, frozen, in eval mode.

    `dtype` is that of all that is not quantised, as far as the kernels allow: there is no float64
    kernel anywhere, and no float32 kernel on CUDA or, for what gptqmodel loads itself, of other than
    4 bits. The returned model's dtype is what it runs in. It cannot be changed later. On CUDA the fastest kernel is
    taken that can be had here: most are compiled from CUDA sources at first use, which takes a compiler, and
    minutes. Raises ModelError.
    """
    import torch

    gptqmodel()
    folder = folder.resolve()
    loader = loader_of(read_config(folder))
    wanted = dtype if dtype in (torch.float16, torch.bfloat16) else torch.float32
    if wanted is torch.float32 and device != "cpu":
        wanted = torch.bfloat16
    load = _load_with_transformers if loader == "transformers" else _load_with_gptqmodel
    *others, last = _backends(device)
    model, failed = None, []
    for backend in others:
        try:
            with quiet():
                model = load(folder, wanted, device, backend)
            break
        except torch.OutOfMemoryError:  # no other would need less
            raise
        except Exception as error:  # the next one may do: two libraries, a kernel for each width
            said = str(error).strip().splitlines() or [""]
            failed.append(f"{backend}: {type(error).__name__}: {said[0][:160]}")
    if model is None:
        try:
            with quiet():
                model = load(folder, wanted, device, last)
        except Exception as error:
            raise load_failure(str(folder), error) from error
    model._kernels_passed_over = "; ".join(failed)
    for layer in _quantized_layers(model):
        if device == "cpu":
            # gptqmodel has torch.compile unpack the weights: it takes seconds and a C++ compiler, and gains nothing.
            vars(layer).pop("dequantize_weight", None)
    model.requires_grad_(False)
    return model.eval()


def _backends(device: str) -> tuple[str, ...]:
    """gptqmodel's kernels to try there, by its names, the fastest first.

    On CUDA its own choice is one that it compiles by nvcc, and it finds out only when it runs that there is none.
    """
    if not device.startswith("cuda"):
        return ("auto",)
    from torch.utils.cpp_extension import CUDA_HOME

    compiled = ("auto",) if CUDA_HOME is not None and shutil.which("nvcc", path=f"{CUDA_HOME}/bin") else ()
    return (*compiled, "gptq_triton", UNPACKING)


def _load_with_transformers(folder: Path, dtype: torch.dtype, device: str, backend: str) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM, GPTQConfig

    # of which only the backend is looked at: all else stays as in the folder
    asked = {} if backend == "auto" else {"quantization_config": GPTQConfig(bits=4, backend=backend)}
    return AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=dtype, device_map={"": device}, use_safetensors=True, trust_remote_code=False, **asked
    )


def _load_with_gptqmodel(folder: Path, dtype: torch.dtype, device: str, backend: str) -> PreTrainedModel:
    import torch

    load = partial(gptqmodel().GPTQModel.load, str(folder), device=device, backend=backend, trust_remote_code=False)
    try:
        return load(dtype=dtype).model
    except (ValueError, NotImplementedError):
        if dtype is not torch.float32:
            raise
        return load(dtype=torch.bfloat16).model


def is_kernel(module: torch.nn.Module) -> bool:
    """Whether it multiplies by weights that gptqmodel quantised: [..., in] -> [..., out]."""
    # by what every kernel declares: their buffers go when they pack the weights their own way
    return hasattr(type(module), "SUPPORTS_BITS")


def _quantized_layers(model: PreTrainedModel) -> list[torch.nn.Module]:
    return [module for module in model.modules() if is_kernel(module)]


def gptqmodel() -> ModuleType:
    """The library, imported at the first call. Raises ModelError with what to install where it is not there."""
    # A machine of one or two cores gets one worker by default, and its own loader then asks for two.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        with quiet():
            import gptqmodel as library
            import optimum.gptq  # noqa: F401 - transformers needs it to read the folders
            from gptqmodel.utils import threadx
    except ImportError as error:
        raise ModelError(f"GPTQ needs gptqmodel and optimum ({error}): {INSTALL}") from error
    finally:
        # One of its dependencies calls logging.basicConfig(INFO): every library's chatter would reach the terminal.
        root.handlers[:] = handlers
        root.setLevel(level)
    quieten("logbar", "gptqmodel", "optimum", "tokenicer", "device_smi")
    # Its pool's threads end the whole process on any exception, which also reaches the caller as it should.
    for worker in vars(threadx).values():
        if hasattr(worker, "_abort_process"):
            worker._abort_process = lambda *_: None
    return cast(ModuleType, library)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What the body prints goes into the log, and no file that it drops into the current folder stays.

    gptqmodel draws bars and tables on stdout whatever its log level, and makes a folder `logs` where
    it runs. What goes wrong it raises, so nothing is lost without a log. Give it absolute paths.
    """
    with (
        tempfile.TemporaryDirectory() as elsewhere,
        contextlib.chdir(elsewhere),
        contextlib.redirect_stdout(sink()),
        contextlib.redirect_stderr(sink()),
    ):
        yield
