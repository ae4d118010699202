"""What the machine is and can do; whether GPTQ works on it at all."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import torch
from decoder_pairs import TARGET, its_first_layers
from decoder_passes import Row, row
from gpu_pairs import Bench, copy_bandwidth, given, in_order, product_rate

from eval.verdict.stats import Interval
from factory import provenance
from factory.data.blocks import TextBlocks
from factory.forecasting.gauge import measured
from factory.models.loading import load_model
from factory.models.quantized import gptqmodel, kernel_of, load_quantized
from factory.stages.gptq import Gptq
from factory.surgery.carving import copy_beside

MEMORY, PRODUCT = "device memory, copies, GB/s read and written", "matrix product of random numbers, TFLOP/s"


def environment(bench: Bench) -> Iterator[Row]:
    """The device's name, memory and driver; its bandwidth and its peak; the profile that forecasts use."""
    bench.facts |= device_facts(bench)
    yield from in_order(
        bench,
        [
            ("copies", 0, lambda: iter([_plain(MEMORY, gb_per_s=copy_bandwidth(bench.device) / 1e9)])),
            ("product", 0, lambda: iter([_product(bench)])),
            ("profile", 20 if bench.full else 0, lambda: profile(bench)),
        ],
    )


def device_facts(bench: Bench) -> dict[str, Any]:
    """As the driver says them."""
    if not bench.cuda:
        return {"gpus": 0}
    shown = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    facts: dict[str, Any] = {
        "gpus": len(shown),
        "memory_bytes": [one.total_memory for one in shown],
        "multiprocessors": [one.multi_processor_count for one in shown],
        "capability": [f"{one.major}.{one.minor}" for one in shown],
        "compilers": {name: shutil.which(name) for name in ("nvcc", "g++", "ninja")},
    }
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.memory,clocks.max.sm", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout
        facts["driver, clocks"] = said.strip().splitlines()
    except (OSError, subprocess.SubprocessError) as error:
        facts["driver, clocks"] = f"nvidia-smi: {error}"
    return facts


def _product(bench: Bench) -> Row:
    return _plain(f"{PRODUCT}, {bench.dtype}", tflop_per_s=product_rate(bench.device, bench.dtype) / 1e12)


def profile(bench: Bench) -> Iterator[Row]:
    """What `factory doctor` would measure: forecasts of this run take it."""
    name = torch.cuda.get_device_name(bench.device) if bench.cuda else str(provenance.hardware("cpu")["cpu"])
    found = measured(bench.device, name)
    bench.facts["profile"] = found.record()
    yield _plain(
        "the profile of `factory doctor`",
        weights_gb_per_s=found.bandwidth_bytes_per_s / 1e9,
        bfloat16_tflop_per_s=found.peak_flop_per_s["bfloat16"] / 1e12,
        layer_overhead_us=1e6 * found.layer_overhead_s,
        round_overhead_us=1e6 * found.round_overhead_s,
    )


def _rows(ids: torch.Tensor) -> TextBlocks:
    """Rows of ids [N, T] that are answers from end to end."""
    count = len(ids)
    return TextBlocks(ids, torch.full((count,), ids.shape[1]), torch.ones_like(ids).bool(), torch.arange(count))


def _plain(what: str, **detail: Any) -> Row:
    """A row that compares nothing."""
    return row(what, "the machine", Interval(next(iter(detail.values())), None, None), None, **detail)


def gptq(bench: Bench) -> Iterator[Row]:
    """gptqmodel imported, two layers of the shipped target quantised, read back from disk and run.

    Which kernel, how far off, how long.
    """
    begun_s = time.monotonic()
    library = gptqmodel()
    import_s = time.monotonic() - begun_s
    bench.facts |= {"gptqmodel": library.__version__, "import_s": import_s}
    model = its_first_layers(load_model(TARGET, dtype=getattr(torch, bench.dtype)), 2)
    raw, made = bench.work / "tiny", bench.work / "tiny-4bit"
    for folder in (raw, made):
        shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(raw)
    copy_beside(TARGET, raw)
    ids = torch.randint(3, model.config.vocab_size, (48, 64), generator=torch.Generator().manual_seed(0))
    begun_s = time.monotonic()
    facts = Gptq(kind="gptq", bits=4, group_size=64, samples=32).quantize(raw, made, given(_rows(ids), bench.work))
    quantise_s = time.monotonic() - begun_s
    bench.facts["stage"] = facts
    begun_s = time.monotonic()
    small = load_quantized(made, dtype=getattr(torch, bench.dtype), device=bench.device)
    with torch.inference_mode():
        mine, theirs = (
            one(input_ids=ids[:4].to(bench.device)).logits.float() for one in (model.to(bench.device), small)
        )
    error = float((mine - theirs).norm() / mine.norm())
    yield _plain(
        "4-bit GPTQ of two layers, relative error of logits",
        relative_error=error,
        kernel=kernel_of(small),
        import_s=import_s,
        quantise_s=quantise_s,
        load_and_run_s=time.monotonic() - begun_s,
    )
