"""The low-memory build: a two-layer drafter out of a generated, sharded checkpoint of Llama 2 7B's shape.

    python docs/benchmarks/low_memory.py FOLDER        # needs 18 GB there, deletes all of it afterwards
    python docs/benchmarks/low_memory.py FOLDER --scale small --to FOLDER/low-memory.json        # seconds

The weights are random: memory, seconds and bytes are measured, nothing about text. Two builds, each by `factory
build` in a process of its own: `drop_layers keep: [0, 31]`, and the same with half of every layer's FFN channels,
drawn from the seed (`prune_width score: random`). Neither needs the model, so tensors pass through one by one. The
bound on the process's peak, libraries and mapped file pages counted, is the drafter's own size and 1 GB. Then
transformers alone loads the drafter: its shapes are checked, and tensors compared bit for bit with the checkpoint.

The peak is the largest VmHWM that was read while the process ran, 100 times a second, and that its stages recorded
themselves: each stage resets the mark, so what the kernel reports at the end (ru_maxrss) would be too small.
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from arguments import writable
from safetensors import safe_open
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from factory import provenance

KEPT = Path(__file__).with_name("low-memory-cpu.json")
ALLOWED_BYTES = 10**9  # above the drafter's own size
SCALES = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "vocab_size": 32000},
    "small": {"hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 4, "vocab_size": 2000},
}
SHARD_BYTES = {"7b": 5_000_000_000, "small": 20_000_000}
LAYERS = 32
KEEP = (0, LAYERS - 1)
VARIANTS = {
    "two layers": ["{kind: drop_layers, keep: [0, 31]}"],
    "two layers, half of the FFN": [
        "{kind: drop_layers, keep: [0, 31]}",
        "{kind: prune_width, keep_ffn: 0.5, score: random}",
    ],
}
Shapes = dict[str, tuple[int, ...]]


def config_of(scale: str) -> LlamaConfig:
    """Llama 2 7B's, or a small one with as many layers."""
    config = LlamaConfig(
        **SCALES[scale],
        num_hidden_layers=LAYERS,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        dtype="bfloat16",
    )
    config.architectures = ["LlamaForCausalLM"]
    return config


def shapes_of(config: LlamaConfig) -> Shapes:
    """Every tensor by name, in the order of a checkpoint; no weights are allocated."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def size_of(shape: tuple[int, ...]) -> int:
    """Bytes in bfloat16."""
    return 2 * int(torch.Size(shape).numel())


def shards_of(shapes: Shapes, most: int) -> Iterator[Shapes]:
    """Tensors in their order, cut into files of at most `most` bytes."""
    held: Shapes = {}
    for name, shape in shapes.items():
        if held and sum(map(size_of, held.values())) + size_of(shape) > most:
            yield held
            held = {}
        held[name] = shape
    yield held


def write_shard(path: Path, shapes: Shapes, generator: torch.Generator) -> None:
    """One safetensors file, each tensor drawn, written and forgotten."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, shape in shapes.items():
        end = begin + size_of(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            tensor = torch.empty(shape, dtype=torch.bfloat16)
            tensor = tensor.fill_(1.0) if "norm" in name else tensor.normal_(0.0, 0.02, generator=generator)
            file.write(tensor.view(torch.uint8).numpy().data)


def write_checkpoint(folder: Path, scale: str) -> int:
    """Config, tokenizer, shards and their index; returns the weights' bytes."""
    folder.mkdir(parents=True)
    config = config_of(scale)
    config.save_pretrained(folder)
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks).save_pretrained(folder)
    shapes = shapes_of(config)
    shards = list(shards_of(shapes, SHARD_BYTES[scale]))
    generator = torch.Generator().manual_seed(0)
    places = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_shard(folder / name, shard, generator)
        places |= dict.fromkeys(shard, name)
        print(f"{name} written", file=sys.stderr, flush=True)
    total = sum(map(size_of, shapes.values()))
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return total


def marks_of(process: int) -> int:
    """The largest VmHWM and VmRSS that the process shows now; 0 where it is gone."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        return max((int(line.split()[1]) << 10 for line in lines if line.startswith(("VmHWM:", "VmRSS:"))), default=0)
    return 0


def build(recipe: Path, out: Path) -> tuple[float, int]:
    """(seconds, peak bytes) of `factory build`. Raises SystemExit where it fails."""
    # --yes: the forecast of memory takes the target for loaded, which these stages never do
    command = [sys.executable, "-m", "factory.cli", "build", str(recipe), "--out", str(out), "--yes", "--quiet"]
    begun_s, peak = time.monotonic(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, marks_of(process.pid))
            time.sleep(0.01)
    if process.returncode:
        raise SystemExit(f"factory build ended with {process.returncode}")
    return time.monotonic() - begun_s, peak


def source_tensor(folder: Path, name: str) -> torch.Tensor:
    """One tensor of the checkpoint."""
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    with safe_open(folder / index["weight_map"][name], framework="pt") as file:
        return file.get_tensor(name)


def check(artifact: Path, checkpoint: Path) -> list[str]:
    """What is not as it should be, of the drafter as transformers alone loads it."""
    model, report = AutoModelForCausalLM.from_pretrained(
        artifact / "model", dtype=torch.bfloat16, output_loading_info=True
    )
    faults = [f"{what}: {names}" for what, names in report.items() if names]
    config = json.loads((checkpoint / "config.json").read_text())
    edits = [json.loads(path.read_text())["facts"]["edit"] for path in sorted((artifact / "stages").glob("*.json"))]
    kept = edits[-1]["keep_ffn"]
    wanted = LlamaConfig(**config)
    wanted.num_hidden_layers = len(KEEP)
    wanted.intermediate_size = len(kept[0]) if kept else wanted.intermediate_size
    held = model.state_dict()
    if {name: tuple(tensor.shape) for name, tensor in held.items()} != shapes_of(wanted):
        faults.append("shapes differ")
    for layer, source in enumerate(KEEP):
        rows = torch.tensor(kept[layer]) if kept else torch.arange(wanted.intermediate_size)
        before = source_tensor(checkpoint, f"model.layers.{source}.mlp.down_proj.weight")[:, rows]
        if not torch.equal(held[f"model.layers.{layer}.mlp.down_proj.weight"], before):
            faults.append(f"layer {layer}: down_proj is not layer {source}'s")
    tables = ("lm_head.weight", "model.embed_tokens.weight")
    return faults + [
        f"{name} differs" for name in tables if not torch.equal(held[name], source_tensor(checkpoint, name))
    ]


def measured(variant: str, checkpoint: Path, scratch: Path, scale: str, source_bytes: int) -> dict[str, Any]:
    """Build one variant, read it back, and say what it took."""
    recipe, out = scratch / "recipe.yaml", scratch / "out"
    stages = "".join(f"  - {stage}\n" for stage in VARIANTS[variant])
    recipe.write_text(f"name: drafter\ntarget: {{model: {checkpoint}}}\nstages:\n{stages}", encoding="utf-8")
    seconds, polled = build(recipe, out)
    artifact = out / "drafter"
    records = [json.loads(path.read_text()) for path in sorted((artifact / "stages").glob("*.json"))]
    manifest = json.loads((artifact / "manifest.json").read_text())
    keys = ("seconds", "was_held_bytes", "peak_memory_bytes")
    taken = [{"kind": record["stage"]["kind"], **{key: record["facts"][key] for key in keys}} for record in records]
    peak = max([polled, *(stage["peak_memory_bytes"] or 0 for stage in taken)])
    drafter_bytes = manifest["bytes_on_disk"]
    faults = check(artifact, checkpoint)
    forecast = manifest.get("forecast") or {}
    shutil.rmtree(out)
    return {
        "variant": variant,
        "scale": scale,
        "stages": taken,
        "source_bytes": source_bytes,
        "source_files": len(list(checkpoint.glob("*.safetensors"))),
        "drafter_bytes": drafter_bytes,
        "seconds": round(seconds, 1),
        "peak_bytes": peak,
        "above_drafter_bytes": peak - drafter_bytes,
        "allowed_bytes": drafter_bytes + ALLOWED_BYTES,
        "within": peak < drafter_bytes + ALLOWED_BYTES,
        "forecast_peak_bytes": forecast.get("peak_memory_bytes"),
        "read_back": faults or "bit for bit",
        "hardware": provenance.hardware("cpu"),
        "versions": provenance.versions(),
        "git": provenance.git_sha(),
    }


def require_room(folder: Path, scale: str) -> None:
    """Raises SystemExit where the disk has too little: checkpoint, and three times a drafter of a tenth."""
    needed = round(1.35 * sum(map(size_of, shapes_of(config_of(scale)).values())))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SystemExit(f"{folder}: {free / 1e9:.1f} GB are free, and {needed / 1e9:.1f} GB are needed")


def main() -> None:
    """Generate, build and check each variant, delete."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where checkpoint and drafters go, on a disk with room")
    parser.add_argument("--scale", choices=sorted(SCALES), default="7b")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoint, and use it again where it is there")
    parser.add_argument("--to", type=writable, default=KEPT, help="the JSON that the lines are appended to")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    folder = arguments.folder.resolve()
    checkpoint, scratch = folder / f"llama-{arguments.scale}", folder / "building"
    there = (checkpoint / "model.safetensors.index.json").is_file()
    if (checkpoint.exists() and not (there and arguments.keep)) or scratch.exists():
        raise SystemExit(f"{folder} holds {checkpoint.name} or {scratch.name}, of another run: move them away")
    lines = json.loads(arguments.to.read_text(encoding="utf-8")) if arguments.to.is_file() else []
    try:
        if not there:
            require_room(folder, arguments.scale)
            begun_s = time.monotonic()
            write_checkpoint(checkpoint, arguments.scale)
            print(f"checkpoint written in {time.monotonic() - begun_s:.0f} s", file=sys.stderr, flush=True)
        source_bytes = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
        scratch.mkdir()
        for variant in VARIANTS:
            line = measured(variant, checkpoint, scratch, arguments.scale, source_bytes)
            print(json.dumps(line), flush=True)
            lines.append(line)
            arguments.to.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if not arguments.keep:
            shutil.rmtree(checkpoint, ignore_errors=True)
    if any(not line["within"] or line["read_back"] != "bit for bit" for line in lines[-len(VARIANTS) :]):
        raise SystemExit("a bound was missed, or a drafter is not what it should be: see the lines above")


if __name__ == "__main__":
    main()
