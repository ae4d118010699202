"""TRL's GKD trainer on the pairs of distillation_arms.py, set up for speed; imported only where TRL is installed.

It runs by `trainer.train()`, as its users run it: float32, or both sides in bfloat16; no gradient checkpointing, no
dropout, no logging, saving or evaluation, fused AdamW, rows tokenised beforehand, no worker processes, no KV cache in
either model's training pass. It meets the rows in the order that our stage takes them in. lmbda = 0: no student's text.
beta = 0: KL(target || student).
"""

from __future__ import annotations

import copy
import gc
import time
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from distillation_arms import TARGET, Block, Case
from transformers import PrinterCallback, TrainerCallback
from trl.experimental.gkd import GKDConfig, GKDTrainer

from factory.models.loading import load_tokenizer


class Stamps(TrainerCallback):
    """The end of every optimizer step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """After optimizer and scheduler."""
        self.ends.append(time.perf_counter())


class Heard(GKDTrainer):
    """Keeps the loss of every step, for a look at them; not used where time is taken."""

    def training_step(self, *args: Any, **more: Any) -> torch.Tensor:
        """As it is."""
        loss: torch.Tensor = super().training_step(*args, **more)
        self.heard = [*getattr(self, "heard", []), float(loss)]
        return loss


def dataset(case: Case) -> Dataset:
    """The text as token ids with a mask of answers, step after step as our stage takes it."""
    rows = [row for step in case.order() for row in step]
    text = case.text
    ids = [text.ids[row, : text.length[row]].tolist() for row in rows]
    answers = [text.answer[row, : text.length[row]].long().tolist() for row in rows]
    # `prompt` is asked for by the collator, and not read where the mask says where a prompt ends.
    return Dataset.from_dict({"prompt": ["-"] * len(rows), "input_ids": ids, "completion_mask": answers})


def settings_of(case: Case, steps: int, folder: str) -> GKDConfig:
    """What a user who wants speed on a CPU would say, and our stage's optimizer."""
    return GKDConfig(
        output_dir=folder,
        lmbda=0.0,
        beta=0.0,
        temperature=1.0,
        max_length=int(case.text.length.max()),
        max_steps=steps,
        per_device_train_batch_size=case.settings.batch,
        gradient_accumulation_steps=1,
        learning_rate=case.settings.lr,
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        use_cpu=True,
        bf16=case.settings.half,
        fp16=False,
        gradient_checkpointing=False,
        disable_dropout=True,
        train_sampling_strategy="sequential",
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=case.settings.seed,
    )


def train(case: Case, rows: Dataset, steps: int | None = None) -> Block:
    """A block of TRL's. `steps` cuts it short, for a look at its losses; then their hearing is in the time too."""
    gc.collect()
    settings, threads = case.settings, torch.get_num_threads()
    total, kind = steps or settings.steps, Heard if steps else GKDTrainer
    student = copy.deepcopy(case.student).requires_grad_(True)
    target = copy.deepcopy(case.target)
    student.config.use_cache = target.config.use_cache = False
    tokenizer = load_tokenizer(TARGET)  # for its padding alone
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    stamps = Stamps()
    with TemporaryDirectory() as folder:
        trainer = kind(
            model=student,
            teacher_model=target,
            args=settings_of(case, total, folder),
            train_dataset=rows,
            processing_class=tokenizer,
            callbacks=[stamps],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    assert len(stamps.ends) == total and torch.get_num_threads() == threads
    first = min(settings.warm, total - 1)
    tokens = sum(case.answers()[first:total])
    return Block(stamps.ends[-1] - stamps.ends[first - 1], tokens, getattr(trainer, "heard", []))
