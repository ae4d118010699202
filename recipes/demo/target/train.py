"""Train the shipped target: a 12 M parameter language model of Python code.

    python recipes/demo/target/train.py --minutes 100        # 2 CPU cores
    python recipes/demo/target/train.py --minutes 8          # one CUDA device, used when there is one

What: a Llama of 20 layers x 256 (4 heads of 64, 2 key/value heads, FFN 512) over an own
byte-level BPE of 2,048 tokens. Deep and narrow on purpose: a drafter that keeps one or two of
its layers costs about a tenth of a step, the region in which speculative decoding pays.

Corpus: the .py files of the installed torch and transformers packages and of the standard
library (without its tests). Leading comments (licence headers) are cut, so that the model does
not spend its first 200 tokens reciting one. One file in 64, chosen by the hash of its name, is
held out: the loss on the card and the prompts of the `code` suite come from those alone.

The length of a run is wall-clock time, not tokens: the learning rate follows the share of
`--minutes` that is spent, over all resumed runs together. Ctrl-C or a kill loses at most the
minute since the last checkpoint; the same command goes on from there.

Writes beside itself: model.safetensors (bfloat16), config.json, tokenizer files, README.md (the
card). Everything intermediate lies in `--work`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import random
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
END_OF_TEXT = "<|endoftext|>"  # id 0; both BOS and EOS: every document begins with it
VOCABULARY = 2048
CONTEXT = 512
SHORT_CONTEXT = 256  # the first 80 % of the run: attention is cheaper, more tokens are seen
HELD_OUT_ONE_IN = 64
LEARNING_RATE = 5e-3
TEST_FOLDERS = {"test", "tests", "idle_test"}
SOURCES = ("stdlib", "torch", "transformers")


class SourceFile(NamedTuple):
    name: str  # source/relative/path.py, the same on every machine
    path: Path


def corpus_files() -> list[SourceFile]:
    """Every corpus file, sorted by name."""
    roots = {
        "stdlib": Path(sysconfig.get_paths()["stdlib"]),
        "torch": Path(torch.__file__).parent,
        "transformers": Path(transformers.__file__).parent,
    }
    found = []
    for source, root in roots.items():
        for path in root.rglob("*.py"):
            relative = path.relative_to(root)
            if "site-packages" in relative.parts or TEST_FOLDERS & set(relative.parts):
                continue
            found.append(SourceFile(f"{source}/{relative.as_posix()}", path))
    return sorted(found)


def is_held_out(name: str) -> bool:
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % HELD_OUT_ONE_IN == 0


def read_source(path: Path) -> str:
    """The file's text without its leading comment lines; empty when it is not UTF-8."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except UnicodeDecodeError:
        return ""
    first = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    return "".join(lines[first:])


def file_list_digest(files: list[SourceFile]) -> str:
    """sha256 over `name sha256(bytes)` lines: pins the corpus without carrying it."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {hashlib.sha256(file.path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def train_tokenizer(texts: Iterator[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, files: list[SourceFile]) -> np.ndarray:
    """All documents in one stream of uint16 ids, each begun by END_OF_TEXT."""
    stream: list[np.ndarray] = []
    for start in range(0, len(files), 256):
        texts = [read_source(file.path) for file in files[start : start + 256]]
        encodings = tokenizer.encode_batch([text for text in texts if text], add_special_tokens=False)
        stream += [np.array([0, *encoding.ids], dtype=np.uint16) for encoding in encodings]
    return np.concatenate(stream)


def prepare(work: Path) -> dict[str, Any]:
    """Tokenizer and token streams, made once and kept in `work`."""
    facts_path = work / "corpus.json"
    if facts_path.exists():
        return dict(json.loads(facts_path.read_text()))
    work.mkdir(parents=True, exist_ok=True)
    files = corpus_files()
    training = [file for file in files if not is_held_out(file.name)]
    held_out = [file for file in files if is_held_out(file.name)]
    random.Random(0).shuffle(training)
    tokenizer = train_tokenizer(read_source(file.path) for file in training)
    tokenizer.save(str(work / "tokenizer.json"))
    tokens = encode(tokenizer, training)
    np.save(work / "train.npy", tokens)
    for source in SOURCES:
        part = [file for file in held_out if file.name.startswith(source + "/")]
        np.save(work / f"held_out_{source}.npy", encode(tokenizer, part))
    facts = {
        "file_list_sha256": file_list_digest(files),
        "files": len(training),
        "held_out_files": [file.name for file in held_out],
        "training_tokens": int(tokens.size),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    facts_path.write_text(json.dumps(facts, indent=1))  # last: its existence means complete
    return facts


def new_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=20,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # GPT-2's scaled initialisation: keeps 20 residual additions at unit size
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_(1 / math.sqrt(2 * config.num_hidden_layers))
    return model


def new_optimizers(model: LlamaForCausalLM) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the rest.

    Muon takes larger useful steps where steps are few (Jordan et al., 2024).
    """
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    muon = torch.optim.Muon(matrices, lr=LEARNING_RATE, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    return muon, torch.optim.AdamW(rest, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)


def learning_rate(progress: float) -> float:
    """Warm-up over 2 %, constant, then linear to zero over the last 40 % (arXiv 2405.18392)."""
    if progress < 0.02:
        return LEARNING_RATE * max(progress / 0.02, 0.01)
    return LEARNING_RATE * min(1.0, (1 - progress) / 0.4)


def batch(tokens: np.ndarray, step: int, context: int, batch_tokens: int) -> torch.Tensor:  # [B, T + 1]
    """Random windows; a function of (tokens, step), so that a resumed run draws what it would have drawn."""
    rng = np.random.default_rng((0, step))
    starts = rng.integers(0, tokens.size - context - 1, size=batch_tokens // context)
    return torch.from_numpy(np.stack([tokens[s : s + context + 1].astype(np.int64) for s in starts]))


def loss_on(model: LlamaForCausalLM, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:  # ids [B, T + 1]
    ids = ids.to(model.device)
    with torch.autocast(model.device.type, dtype=dtype, enabled=dtype != torch.float32):
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits  # [B, T, V]
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, tokens: np.ndarray) -> float:
    """Nats per token in float32, over windows of CONTEXT, at most 64 of them, evenly spread."""
    starts = np.linspace(0, tokens.size - CONTEXT - 1, min(64, tokens.size // CONTEXT)).astype(int)
    windows = np.stack([tokens[s : s + CONTEXT + 1].astype(np.int64) for s in starts])
    losses = [loss_on(model, torch.from_numpy(w)[None], torch.float32).item() for w in windows]
    return float(np.mean(losses))


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def train(work: Path, minutes: float, device: str, dtype: torch.dtype, batch_tokens: int) -> dict[str, Any]:
    tokens = np.load(work / "train.npy", mmap_mode="r")
    model = new_model().to(device)
    optimizers = new_optimizers(model)
    spent_s, step, tokens_seen = 0.0, 0, 0
    checkpoint = work / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved_state in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved_state)
        spent_s, step, tokens_seen = state["spent_s"], state["step"], state["tokens_seen"]
        print(f"resumed at step {step}, {spent_s / 60:.1f} minutes", flush=True)
    budget_s = minutes * 60
    last = saved = time.perf_counter()
    while spent_s < budget_s:
        progress = spent_s / budget_s
        context = SHORT_CONTEXT if progress < 0.8 else CONTEXT
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = learning_rate(progress)
        loss = loss_on(model, batch(tokens, step, context, batch_tokens), dtype)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        step += 1
        tokens_seen += batch_tokens
        now = time.perf_counter()
        spent_s += now - last
        last = now
        if step % 20 == 0:
            rate = tokens_seen / spent_s
            print(f"step {step} {spent_s / 60:.1f} min loss {loss.item():.3f} {rate:.0f} tok/s", flush=True)
        if now - saved > 60 or spent_s >= budget_s:
            state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
            save_checkpoint(checkpoint, {**state, "spent_s": spent_s, "step": step, "tokens_seen": tokens_seen})
            saved = now
    model.float().eval()
    losses = {source: held_out_loss(model, np.load(work / f"held_out_{source}.npy")) for source in SOURCES}
    model.to(torch.bfloat16).save_pretrained(HERE)
    return {"steps": step, "tokens_seen": tokens_seen, "minutes": spent_s / 60, "held_out_loss": losses}


@torch.no_grad()
def samples(tokenizer: PreTrainedTokenizerFast, count: int = 3) -> list[str]:
    """What the saved model writes after BOS at temperature 0.8, seeds 0, 1, 2."""
    model = LlamaForCausalLM.from_pretrained(HERE, dtype=torch.float32)
    texts = []
    for seed in range(count):
        torch.manual_seed(seed)
        ids = model.generate(torch.tensor([[0]]), do_sample=True, temperature=0.8, top_k=0, max_new_tokens=160)
        texts.append(tokenizer.decode(ids[0], skip_special_tokens=True))
    return texts


def hardware(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name(0)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def write_card(corpus: dict[str, Any], run: dict[str, Any], texts: list[str], command: str, where: str) -> None:
    losses = "\n".join(f"| {source} | {loss:.3f} |" for source, loss in run["held_out_loss"].items())
    blocks = "\n\n".join(f"```python\n{text}\n```" for text in texts)
    versions = ", ".join(f"{name} {version}" for name, version in corpus["versions"].items())
    parameters = sum(p.numel() for p in LlamaForCausalLM.from_pretrained(HERE).parameters())
    (HERE / "README.md").write_text(
        f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---
# The shipped target: a small language model of Python code

Made by this repository so that its demo has a real target to draft for. It writes text that is
recognisably Python and mostly not correct; it is of no use beyond that.

| what | value |
| --- | --- |
| class | `LlamaForCausalLM`, 20 layers x 256, 4 heads of 64, 2 key/value heads, FFN 512, tied embeddings |
| parameters | {parameters:,} (bfloat16 on disk) |
| tokenizer | byte-level BPE, {VOCABULARY} entries, trained on the same files; `{END_OF_TEXT}` = 0 is BOS and EOS |
| context | {CONTEXT} tokens |
| command | `{command}` |
| hardware | {where} |
| training time | {run["minutes"]:.0f} minutes; on one or two cores at a time, shared with other work |
| tokens seen | {run["tokens_seen"]:,} in {run["steps"]:,} steps, of {corpus["training_tokens"]:,} in the corpus |
| corpus | {corpus["files"]:,} .py files: {versions}; standard library without its tests |
| sha256 of the file list | `{corpus["file_list_sha256"]}` |
| held out | {len(corpus["held_out_files"])} files, listed in [corpus.json](corpus.json) |

Held-out loss, nats per token in float32, windows of {CONTEXT} tokens:

| files of | loss |
| --- | --- |
{losses}

The transformers row is flattered: its model files repeat one another, so a held-out file has
close relatives among those trained on. The code suite's prompts come from held-out files only.

## What it writes

After BOS, temperature 0.8, seeds 0 to {len(texts) - 1}:

{blocks}
"""
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=100.0, help="wall-clock training time, all runs together")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="token streams and checkpoints")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the matrix products")
    parser.add_argument("--batch-tokens", type=int, default=0, help="tokens a step; default 3072, on CUDA 32768")
    arguments = parser.parse_args()
    batch_tokens = arguments.batch_tokens or (32768 if arguments.device == "cuda" else 3072)
    corpus = prepare(arguments.work)
    print(json.dumps({k: v for k, v in corpus.items() if k != "held_out_files"}), flush=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(arguments.work / "tokenizer.json"),
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        model_max_length=CONTEXT,
    )
    run = train(arguments.work, arguments.minutes, arguments.device, getattr(torch, arguments.dtype), batch_tokens)
    tokenizer.save_pretrained(HERE)
    (HERE / "corpus.json").write_text(json.dumps(corpus, indent=1))
    command = f"python recipes/demo/target/train.py --minutes {arguments.minutes:g}"
    write_card(corpus, run, samples(tokenizer), command, hardware(arguments.device))
    print(json.dumps(run))


if __name__ == "__main__":
    main()
