"""The low-memory build: a two-layer drafter out of a generated, sharded checkpoint of Llama 2 7B's shape.

    python docs/benchmarks/low_memory.py FOLDER        # writes 13.5 GB into FOLDER, takes about 1.3 GB more, deletes it
    python docs/benchmarks/low_memory.py FOLDER --scale small --to /tmp/low-memory.json        # seconds

The weights are random: what is measured is memory, seconds and bytes, nothing about text. Two builds, each by
`factory build` in a process of its own: `drop_layers keep: [0, 31]`, and the same with half of every layer's FFN
drawn from the seed (`prune_width score: random`). Neither needs the model, so tensors pass through one by one. The
bound is the drafter's own size and 1 GB; the process's peak counts its libraries, a bound on what the build adds.
Each drafter is then loaded with transformers alone, its shape checked, and tensors compared bit for bit.

`files_cached` in the line says why a peak may hold file pages: it is VmHWM, RssFile included.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from factory import provenance
