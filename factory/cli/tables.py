"""Artifacts as a table and as JSON."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from factory.anatomy.shapes import Shape

if TYPE_CHECKING:
    from rich.console import Console

    from factory.artifact import Artifact

ALPHA = 0.8  # the acceptance at which the forecast of a table is taken


def facts(artifact: Artifact) -> dict[str, Any]:
    """What a manifest says of a drafter, and what its sizes promise."""
    from factory.forecasting.forecast import Costs, cost_ratio

    made = artifact.manifest
    shape, target = Shape(**made["shape"]), Shape(**made["target_shape"])
    forecast = made.get("forecast")
    c = forecast["c_bytes"] if forecast else cost_ratio(shape, target)  # as it runs; as it is stored
    speedup, k = Costs(0.0, c, lambda _k: 1.0).best(ALPHA)
    measured = [stage for stage in made["facts"] if stage.get("held_out_after")]
    overlap = (
        (measured[0]["held_out_before"]["overlap"], measured[-1]["held_out_after"]["overlap"]) if measured else None
    )
    return {
        "name": artifact.name,
        "folder": str(artifact.folder),
        "raw": made["raw"],
        "layers": shape.layers,
        "ffn": shape.ffn,
        "heads": shape.heads,
        "bits": shape.bits,
        "parameters": made["parameters"],
        "bytes_on_disk": made["bytes_on_disk"],
        "cost_ratio": c,
        "forecast_speedup": speedup,
        "forecast_alpha": ALPHA,
        "forecast_k": k,
        "held_out_overlap": list(overlap) if overlap else None,
    }


def console() -> Console:
    """For tables on stdout: as wide as the terminal, and in a pipe wide enough."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160)


def show(artifacts: Sequence[Artifact]) -> None:
    """One table of all, on stdout."""
    from factory.fitting import Fitted

    heads = ["drafter", "layers", "ffn", "heads", "bits", "M parameters", "MB", "c", "at best", "held-out overlap"]
    rows = []
    for artifact in artifacts:
        row = facts(artifact)
        overlap = row["held_out_overlap"]
        cells = [
            row["name"],
            str(row["layers"]),
            str(row["ffn"]),
            str(row["heads"]),
            f"{row['bits']:.3g}",
            f"{row['parameters'] / 1e6:.2f}",
            f"{row['bytes_on_disk'] / 1e6:.1f}",
            f"{row['cost_ratio']:.3f}",
            f"{row['forecast_speedup']:.2f}x",
            f"{overlap[0]:.3f} -> {overlap[1]:.3f}" if overlap else "",
        ]
        rows.append(cells)
    caption = f"c in bytes; at best: the most that bytes allow at alpha {ALPHA:.2f}"
    table = Fitted(None, heads, rows, spare=("heads", "ffn", "bits", "MB", "M parameters"), caption=caption)
    console().print(table)


def summary(artifact: Artifact) -> str:
    """One line."""
    made = artifact.manifest
    kind = "raw, " if made["raw"] else ""
    megabytes, millions = made["bytes_on_disk"] / 1e6, made["parameters"] / 1e6
    size = f"{kind}{made['shape']['layers']} layers, {millions:.2f} M parameters, {megabytes:.1f} MB"
    return f"{artifact.name}: {size}, for {made['target']['model']} ({artifact.folder})"


def listed(artifacts: Sequence[Artifact]) -> None:
    """One line each, on stdout."""
    for artifact in artifacts:
        typer.echo(summary(artifact))
