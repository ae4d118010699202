"""How near the memory's speed the project's kernels come: products of few rows against cuBLAS, attention against SDPA.

    python docs/benchmarks/cuda_kernels.py             # on a CUDA device; writes cuda-kernels.json here
    python docs/benchmarks/cuda_kernels.py --to FILE   # elsewhere: tiny, in Triton's interpreter; no times

Products are timed in a CUDA graph over as many weights as do not fit into the L2 cache, as the choice in
`factory/decoding/tuned.py` does. The floor is that of a copy on the same device, both directions counted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from arguments import writable

CUDA = torch.cuda.is_available()
if not CUDA:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported

from factory import provenance  # noqa: E402
from factory.decoding.kernels import decode_attention  # noqa: E402
from factory.decoding.tuned import ROWS, compared, graph_seconds, why_no_kernels  # noqa: E402
from factory.files.atomic import write_atomically  # noqa: E402

KEPT = Path(__file__).with_name("cuda-kernels.json")
DEVICE = torch.device("cuda" if CUDA else "cpu")
LAYERS = 32
# [outputs, inputs] of a 7B Llama, and how many of them a step reads
SHAPES = {
    "qkv": (12288, 4096, LAYERS),
    "attention out": (4096, 4096, LAYERS),
    "gate and up": (22016, 4096, LAYERS),
    "down": (4096, 11008, LAYERS),
    "head": (32000, 4096, 1),
}
# batch, heads with keys, heads that share them, tokens, slots of the cache, slots in use, width
ATTENTIONS = [
    *((1, 32, 1, tokens, slots, slots, 128) for tokens in (1, 5, 9) for slots in (512, 2048, 8192)),
    *((1, 8, 4, tokens, slots, slots, 128) for tokens in (1, 5, 9) for slots in (512, 8192)),
    (1, 32, 1, 1, 8192, 700, 128),
    (16, 32, 1, 1, 1024, 1024, 128),
    (16, 32, 1, 5, 1024, 1024, 128),
]
BUDGET_S = 50.0
if not CUDA:
    SHAPES = {"small": (40, 72, 1)}
    ROWS = (1, 5)
    ATTENTIONS = [(2, 2, 2, 3, 90, 70, 16)]


def weights(outputs: int, inputs: int) -> list[tuple[torch.Tensor, None]]:
    """Random ones of one shape, more than an L2 cache holds."""
    dtype = torch.bfloat16
    count = max(1, math.ceil(2**28 / (2 * outputs * inputs))) if CUDA else 1
    return [(torch.randn(outputs, inputs, device=DEVICE, dtype=dtype) / math.sqrt(inputs), None) for _ in range(count)]


def copied_gb_per_s() -> float | None:
    """Of a copy of 1 GiB, read and written."""
    if not CUDA:
        return None
    source = torch.ones(2**29, device=DEVICE, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    return 2 * source.nbytes / graph_seconds(lambda: target.copy_(source)) / 1e9


def products(until_s: float) -> list[dict[str, Any]]:
    """Each shape at each number of rows."""
    rows = []
    for count in ROWS:
        for name, (outputs, inputs, times) in SHAPES.items():
            if time.perf_counter() > until_s:
                print("the rest of the products is left out: time is up")
                return rows
            plain_s, seconds = compared(weights(outputs, inputs), count, graph_seconds if CUDA else _run)
            size = 2 * outputs * inputs
            best = min(seconds, key=lambda config: seconds[config])
            row: dict[str, Any] = {"what": name, "rows": count, "outputs": outputs, "inputs": inputs, "times": times}
            row["right"] = {str(config): taken < math.inf for config, taken in seconds.items()}
            if CUDA:
                row |= {"bytes": size, "cublas_us": plain_s * 1e6, "best": str(best), "best_us": seconds[best] * 1e6}
                row["us"] = {str(config): taken * 1e6 for config, taken in seconds.items() if taken < math.inf}
                print(
                    f"{name:14} {count:2} rows: cuBLAS {size / plain_s / 1e9:6.0f} GB/s, "
                    f"{best} {size / seconds[best] / 1e9:6.0f} GB/s"
                )
            else:
                wrong = [config for config, right in row["right"].items() if not right]
                print(f"{name} {count} rows: {len(seconds)} configurations, wrong: {', '.join(wrong) or 'none'}")
            rows.append(row)
    return rows


def attentions() -> list[dict[str, Any]]:
    """Each case against scaled_dot_product_attention with a mask."""
    rows = []
    for batch, kv, group, tokens, slots, used, width in ATTENTIONS:
        dtype = torch.bfloat16
        queries = torch.randn(batch, kv * group, tokens, width, device=DEVICE, dtype=dtype)
        count = max(1, math.ceil(2**28 / (4 * batch * kv * used * width))) if CUDA else 1
        count = min(count, 64)
        caches = [
            [torch.randn(batch, kv, slots, width, device=DEVICE, dtype=dtype) for _ in range(2)] for _ in range(count)
        ]
        positions = torch.arange(used - tokens, used, device=DEVICE).expand(batch, tokens)
        # as a recorded pass has it: heads that share keys are queries of them, the mask is added to the scores
        seen = torch.arange(slots, device=DEVICE) <= positions.repeat(1, group).unsqueeze(-1)
        mask = torch.zeros(seen.shape, device=DEVICE, dtype=dtype).masked_fill_(~seen, -math.inf).unsqueeze(1)
        folded = queries.reshape(batch, kv, group * tokens, width)
        scale = width**-0.5

        def ours(queries=queries, caches=caches, positions=positions, scale=scale):  # type: ignore[no-untyped-def]
            return [decode_attention(queries, *cache, positions, scale) for cache in caches]

        def theirs(folded=folded, caches=caches, mask=mask, scale=scale):  # type: ignore[no-untyped-def]
            return [F.scaled_dot_product_attention(folded, *cache, mask, scale=scale) for cache in caches]

        exact = theirs()[0].view(batch, kv * group, tokens, width).transpose(1, 2).reshape(batch, tokens, -1)
        error = float((ours()[0].float() - exact.float()).abs().max())
        row: dict[str, Any] = {"batch": batch, "kv": kv, "group": group, "tokens": tokens, "slots": slots}
        row |= {"used": used, "width": width, "largest_difference": error}
        said = f"batch {batch}, {kv} x {group} heads, {tokens} tokens, {used} of {slots} slots: off by {error:.4f}"
        if CUDA:
            ours_s, theirs_s = graph_seconds(ours) / count, graph_seconds(theirs) / count
            size = 4 * batch * kv * used * width
            row |= {"us": ours_s * 1e6, "sdpa_us": theirs_s * 1e6, "gb_per_s": size / ours_s / 1e9}
            said += f"; {ours_s * 1e6:.1f} us ({size / ours_s / 1e9:.0f} GB/s), SDPA {theirs_s * 1e6:.1f} us"
        print(said)
        rows.append(row)
    return rows


def step(rows: list[dict[str, Any]], copy_gb_per_s: float) -> list[dict[str, Any]]:
    """The products of one 7B step at each number of rows: by cuBLAS, by the best, at the copy's speed."""
    found = []
    for count in ROWS:
        alike = [row for row in rows if row["rows"] == count]
        if len(alike) == len(SHAPES):
            floor_s = sum(row["bytes"] * row["times"] for row in alike) / copy_gb_per_s / 1e9
            best_s, plain_s = (sum(row[key] * row["times"] for row in alike) / 1e6 for key in ("best_us", "cublas_us"))
            found.append(
                {"rows": count, "floor_ms": floor_s * 1e3, "best_ms": best_s * 1e3, "cublas_ms": plain_s * 1e3}
            )
            print(
                f"all products of a 7B step, {count:2} rows: {best_s * 1e3:.2f} ms, {floor_s / best_s:.0%} of the "
                f"floor's speed; cuBLAS {plain_s * 1e3:.2f} ms, {floor_s / plain_s:.0%}"
            )
    return found


def _run(run: Any) -> float:
    run()
    return 1.0


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--to", type=writable, default=KEPT if CUDA else None, help="the JSON file (default on CUDA: %(default)s)"
    )
    given = parser.parse_args()
    begun_s = time.perf_counter()
    why = why_no_kernels(DEVICE, torch.bfloat16)
    if why is not None:
        raise SystemExit(why)
    torch.manual_seed(0)
    copy = copied_gb_per_s()
    if copy is not None:
        print(f"{torch.cuda.get_device_name()}: a copy moves {copy:.0f} GB/s")
    attended = attentions()
    multiplied = products(begun_s + BUDGET_S)
    result = {
        "schema": 1,
        "interpreted": not CUDA,
        "hardware": provenance.hardware(DEVICE.type),
        "copy_gb_per_s": copy,
        "attention": attended,
        "products": multiplied,
        "step": step(multiplied, copy) if copy is not None else [],
        "took_s": time.perf_counter() - begun_s,
    }
    if given.to is not None:
        write_atomically(given.to, json.dumps(result, indent=1) + "\n")
    right = all(all(row["right"].values()) for row in multiplied) and all(
        row["largest_difference"] < 0.05 for row in attended
    )
    print(json.dumps({"right": right, "took_s": round(result["took_s"], 1)}))
    if not right:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
