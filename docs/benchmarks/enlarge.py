"""A trained model, or a drafter cut out of it, made as large as a real one; it says what it said before.

    python docs/benchmarks/enlarge.py recipes/demo/target FOLDER/target-1b --shape 1b
    python docs/benchmarks/enlarge.py artifacts/demo/quick FOLDER/quick-1b --shape 1b      # with the target's factors
    python docs/benchmarks/enlarge.py MODEL OUT --layers 24 --hidden 1024 --ffn 2816 --heads 16 --kv-heads 8

The folder is one that transformers loads. `factory/surgery/enlarge.py` says how it is done and what is not as in a
model of that size: heads keep their width, the vocabulary is not padded. `--shape 7b` needs 13 GB of memory and as
many of disk; a benchmark makes it on the device instead (`factory.surgery.enlarge.enlarge`), where only the small
model travels. A drafter keeps its own layers unless `--layers` says more; one that is not in an artifact's folder
needs `--like TARGET`. To have it quantised, enlarge it first.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from factory.anatomy.families import shape_from_config
from factory.artifact import Artifact
from factory.errors import FactoryError, ModelError
from factory.models.loading import load_model, resolve_device, resolve_dtype
from factory.models.located import locate, read_config
from factory.surgery.carving import copy_beside
from factory.surgery.enlarge import (
    SHAPES,
    Sizes,
    enlarge,
    enlarged_from,
    named_sizes,
    sizes_alike,
    sizes_of,
    zero_share,
)


def source_of(source: str, like: str | None) -> tuple[Path, Sizes | None, int]:
    """(model folder, sizes of the target that it was cut out of or None, head_dim)."""
    target = None
    if (Path(source) / "manifest.json").is_file():
        artifact = Artifact.open(source)
        folder, of = artifact.model_folder, artifact.manifest["target_shape"]
        target = Sizes(of["layers"], of["hidden"], of["ffn"], of["heads"], of["kv_heads"])
    else:
        folder = locate(source).folder
    if like is not None:
        target = sizes_of(read_config(locate(like).folder))
    return folder, target, shape_from_config(read_config(folder)).head_dim


def sizes_wanted(options: argparse.Namespace, own: Sizes, target: Sizes | None, head_dim: int) -> Sizes:
    """What was asked for: a shape's or the model's own sizes, and what the options say instead."""
    sizes = own
    if options.shape is not None:
        sizes = named_sizes(options.shape, head_dim)
        if target is not None:
            sizes = sizes_alike(own, target, sizes)
    said = {name: getattr(options, name) for name in ("layers", "hidden", "ffn", "heads", "kv_heads")}
    return Sizes(**{name: getattr(sizes, name) if size is None else size for name, size in said.items()})


def main() -> None:
    """Write the folder; print, last, one JSON line of what it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a model's or an artifact's folder")
    parser.add_argument("out", type=Path, help="a folder that is not there yet")
    parser.add_argument("--shape", choices=sorted(SHAPES))
    for name in ("layers", "hidden", "ffn", "heads", "kv-heads"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--like", metavar="TARGET", help="the target that the drafter in SOURCE was cut out of")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32", "float64"])
    parser.add_argument("--device", default="auto", help="where it is made")
    options = parser.parse_args()
    try:
        facts = write(options)
    except FactoryError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(json.dumps(facts))


def require_writable(out: Path) -> None:
    """Raises ModelError for a folder that is there already or cannot be."""
    if out.exists():
        raise ModelError(f"{out} is there already: name a folder that is not")
    try:
        out.mkdir(parents=True)
        out.rmdir()
    except OSError as error:
        raise ModelError(f"{out}: {error.strerror}: name another folder") from error


def write(options: argparse.Namespace) -> dict[str, object]:
    """Load, enlarge, save. Raises FactoryError."""
    require_writable(options.out)
    folder, target, head_dim = source_of(options.source, options.like)
    sizes = sizes_wanted(options, sizes_of(read_config(folder)), target, head_dim)
    device = resolve_device(options.device)
    begun_s = time.monotonic()
    made = enlarge(load_model(folder, dtype=resolve_dtype(options.dtype, device), device=device), sizes)
    took_s = time.monotonic() - begun_s
    made.save_pretrained(options.out)
    copy_beside(folder, options.out)
    head = made.get_output_embeddings().weight
    return {
        "what": enlarged_from(made.config.to_dict()) or "as it was",
        "parameters": made.num_parameters(),
        "bytes": made.get_memory_footprint(),
        "head_bytes": head.numel() * head.element_size(),  # a vocabulary of 32000 would have more: it cannot be padded
        "zero_share": round(zero_share(made), 4),
        "made_s": round(took_s, 1),
    }


if __name__ == "__main__":
    main()
