"""A job's text: its source read and encoded, and where the target is to write it, written. Known when all is there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

from transformers import PreTrainedModel

from factory.building.job import FACTS, Job
from factory.data.blocks import Corpus, corpus
from factory.data.encoding import Encoder, Prompts
from factory.data.scribe import write_text
from factory.data.special_tokens import special_tokens
from factory.errors import DataError
from factory.files.atomic import write_atomically
from factory.models import loading as models
from factory.processes import Processes
from factory.recipes.sources import Data

Target = Callable[[], PreTrainedModel]  # loads it at the first call


def data_of(job: Job) -> Data:
    """What its recipe says of text. Raises DataError where it says nothing."""
    data = job.recipe.data
    if data is None:
        raise DataError("the recipe has no `data` section, and a stage needs text")
    return data


def corpus_of(job: Job, target: Target, processes: Processes) -> Corpus:
    """The whole text, with what is known of it written down beside it. Several processes make it together.

    Raises DataError where nothing fits into the target's context, or nothing is left to learn.
    """
    data = data_of(job)
    if data.written_by == "none":
        given = _encoder(job).rows(job.entries or [], job.shapes[0].context)
        if not given.rows:
            raise DataError(
                f"data.prompts: none of {given.facts['left_out']} rows fits into the target's context of "
                f"{job.shapes[0].context} tokens; give shorter ones"
            )
        made, facts = corpus(given.rows, given.prompt), given.facts
    else:
        prompts = _prompts(job, target, data.max_new_tokens)
        facts = prompts.facts
        made = write_text(
            target,
            prompts.ids,
            samples=data.texts(len(prompts.ids)),
            temperature=data.temperature,
            top_k=data.top_k,
            top_p=data.top_p,
            max_new_tokens=data.max_new_tokens,
            batch=data.batch,
            seed=job.recipe.seed,
            folder=job.text_folder,
            progress=job.progress,
            rank=processes.rank,
            world=processes.world,
            wait=processes.wait,
        )
    made = replace(made, facts={**facts, **made.facts})
    if processes.first:
        job.text_folder.mkdir(parents=True, exist_ok=True)
        write_atomically(job.text_folder / FACTS, json.dumps(made.facts, indent=1))
    return made


def _prompts(job: Job, target: Target, written: int) -> Prompts:
    """What the target continues, `written` tokens long at most."""
    if job.entries is None:
        return Prompts([[models.first_token_id(target())]], {"prompts": 1})
    prompts = _encoder(job).prompts(job.entries, job.shapes[0].context - written)
    if not prompts.ids:
        raise DataError(
            f"data.prompts: none of {prompts.facts['left_out']} prompts leaves room for {written} new tokens in "
            "the target's context; give shorter prompts or a smaller max_new_tokens"
        )
    return prompts


def _encoder(job: Job) -> Encoder:
    tokenizer = models.load_tokenizer(job.located.folder)
    ends = special_tokens(job.located.folder).ends
    own = tokenizer.eos_token_id
    eos = own if own in ends else min(ends, default=own)
    return Encoder(tokenizer, vocabulary=job.shapes[0].embedding_rows, eos=eos)
