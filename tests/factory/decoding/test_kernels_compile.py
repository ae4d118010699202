"""Triton compiles for a GPU without one: what every configuration becomes on an H100 or H200 (capability 9.0)."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from factory.decoding.kernels import DOTTED, SUMMED, Config

triton = pytest.importorskip("triton")
if triton.knobs.runtime.interpret:
    pytest.skip("Triton interprets in this process", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from factory.decoding import triton_attention, triton_products  # noqa: E402

SHARED_BYTES = 232_448  # that a program may have
POINTERS = {
    "out": "*bf16",
    "scratch": "*fp32",
    "parts": "*fp32",
    "peaks": "*fp32",
    "sums": "*fp32",
    "positions": "*i64",
}
POINTERS |= dict.fromkeys(("x", "weight", "bias", "norm", "residual", "queries", "keys", "values"), "*bf16")
EXTRAS = {"HAS_BIAS": False, "HAS_NORM": False, "HAS_RESIDUAL": False, "GATED": False, "EARLY": False}


def compiled(kernel: Any, constants: dict[str, Any], warps: int, stages: int = 3) -> Any:
    """The kernel as for tensors whose addresses, sizes and strides are multiples of 16."""
    names = [parameter.name for parameter in kernel.params]
    constants = {name: value for name, value in constants.items() if name in names} | {"INTERPRETED": False}
    types = {}
    for name in names:
        number = "fp32" if name in ("eps", "scale") else "i32"
        types[name] = "constexpr" if name in constants else POINTERS.get(name, number)
    loose = {*constants, "M", "slots", "eps", "scale"}
    aligned = {(place,): [["tt.divisibility", 16]] for place, name in enumerate(names) if name not in loose}
    source = ASTSource(kernel, types, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps, "num_stages": stages})


def spilled_bytes(kernel: Any, folder: Path) -> int:
    """Of each thread's stack, where registers that do not fit go."""
    (folder / "kernel.cubin").write_bytes(kernel.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    said = subprocess.run(
        [tool, "-res-usage", folder / "kernel.cubin"], capture_output=True, text=True, check=True, timeout=60
    )
    found = re.search(r"STACK:(\d+)", said.stdout)
    assert found is not None, said.stdout
    return int(found[1])


def assert_reads_wide(kernel: Any) -> None:
    """Whether what is read comes in 16 bytes a thread: by registers, or straight into shared memory."""
    code = kernel.asm["ptx"]
    wide = re.findall(r"ld\.global[\w:.]*\.v4\.b32", code) + re.findall(
        r"cp\.async\.cg\.shared\.global [^;]*, 0x10", code
    )
    narrow = re.findall(r"ld\.global[\w:.]*\.b(?:8|16) ", code)
    assert len(wide) >= 8, code[:2000]
    assert not narrow


@pytest.mark.parametrize("config", [*SUMMED, *DOTTED], ids=str)
def test_products_fit_an_h100(config: Config, tmp_path: Path) -> None:
    blocks = {"BLOCK_N": config.block_n, "BLOCK_K": config.block_k, "STAGES": config.stages, "VECTOR": 8}
    blocks |= {"WIDE": 2048 * config.warps, "SPLIT": False, "TWO": True}
    kernel = triton_products.dotted if config.dotted else triton_products.summed
    plain = compiled(kernel, {**EXTRAS, **blocks}, config.warps)
    assert_reads_wide(plain)
    fused = compiled(
        kernel, {**EXTRAS, **blocks, "HAS_NORM": True, "GATED": True, "HAS_RESIDUAL": True, "EARLY": True}, config.warps
    )
    for each in (plain, fused):
        assert each.metadata.shared <= SHARED_BYTES
        assert spilled_bytes(each, tmp_path) == 0
    assert fused.asm["ptx"].count("griddepcontrol") == 2
    if config.stages == 1:  # weights are asked for before the kernel ahead has ended
        assert re.search(r"ld\.global[\w:.]*\.v4", fused.asm["ptx"].split("griddepcontrol.wait")[0])


@pytest.mark.parametrize(("width", "rows"), [(64, 16), (128, 16), (128, 64), (256, 16)])
def test_attention_fits_an_h100(width: int, rows: int, tmp_path: Path) -> None:
    sizes = {"KV": 8, "GROUP": 4, "TOKENS": rows // 4, "WIDTH": width, "WINDOW": 0, "BLOCK_R": rows}
    sizes |= {"BLOCK_S": 64 if width <= 128 else 32, "BLOCK_W": width, "SPLITS": 8, "EARLY": True, "position_token": 1}
    kernel = compiled(triton_attention.attended, sizes, 4, 3 if rows <= 32 else 2)
    assert_reads_wide(kernel)
    assert kernel.metadata.shared <= SHARED_BYTES
    assert spilled_bytes(kernel, tmp_path) == 0
