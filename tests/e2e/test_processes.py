"""Real builds by several processes, launched as accelerate launches them: what comes out, and how they end."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from factory.artifact import Artifact
from factory.building.build import _jobs, build
from factory.models import loading as models
from factory.recipes.recipe import load

RECIPE = """\
name: tiny
keep_raw: true
target: {{model: {target}}}
data: {{prompts: bos, samples: 320, max_new_tokens: 8, batch: 40, held_out: 0.2}}
stages:
  - {{kind: drop_layers, keep: 2, score: block_influence}}
  - {{kind: distill, epochs: 3, lr: 0.003, batch: 8, accumulate: 2, checkpoint_every: 5, teacher: cache, top_k: 8}}
"""
# Behind that: what is tied so far is tied no more, and it is a mean of the weights that is looked at.
UNTIED = (
    "  - {kind: distill, untie_head: true, ema: 0.9, check_every: 1, keep: last, epochs: 1, lr: 0.01, batch: 8, "
    "teacher: cache, top_k: 8}\n"
)
OPTIONS = {"ddp": ["--multi_gpu"], "fsdp": ["--use_fsdp", "--fsdp_version", "2"]}  # on CPUs too
BY_ALL = ["--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]  # any port that is free


def silent(_done: int, _total: int, _what: str) -> None:
    pass


def launch(mode: str, *arguments: str) -> subprocess.Popen[str]:
    """`factory build ...` in two processes: by `accelerate launch`, or in mode `torchrun` by torch's own launcher."""
    accelerate = ["accelerate.commands.launch", *OPTIONS.get(mode, []), *BY_ALL]
    torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launcher = torchrun if mode == "torchrun" else accelerate
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, "-m", "factory", "build", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def alive(process: int) -> bool:
    try:
        return (Path("/proc") / str(process) / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def ended(processes: dict[str, int], within_s: float = 20.0) -> bool:
    deadline_s = time.monotonic() + within_s
    while any(alive(one) for one in processes.values()):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.05)
    return True


def weights(artifact: Path) -> str:
    return hashlib.sha256((artifact / "model" / "model.safetensors").read_bytes()).hexdigest()


def kept(out: Path, what: str) -> dict[str, bytes]:
    """All files of the texts or of the teacher caches of a build."""
    folder = out / ".cache" / what
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`built(save, family, mode)` is the folder of an undisturbed build, made once; beside it recipe.yaml."""
    made: dict[tuple[str, str], Path] = {}
    recipes: dict[str, Path] = {}

    def one(save: Callable[..., Path], family: str, mode: str) -> Path:
        if family not in recipes:
            folder = tmp_path_factory.mktemp(family)
            recipes[family] = folder / "recipe.yaml"
            more = UNTIED if family == "gpt2" else ""
            recipes[family].write_text(RECIPE.format(target=save(family, folder / "target")) + more)
        recipe = recipes[family]
        if (family, mode) not in made:
            out = made[family, mode] = recipe.parent / mode
            if mode == "alone":
                build(load(recipe), out, silent)
            else:
                process = launch(mode, str(recipe), "--out", str(out), "--json")
                said, shown = process.communicate(timeout=120)
                assert process.returncode == 0, shown
                (out / "said.txt").write_text(said)
                (out / "shown.txt").write_text(shown)
        return made[family, mode]

    return one


def facts(out: Path, stage: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = Artifact.open(out / "tiny").manifest["facts"][stage]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("family", "mode"), [("llama", "ddp"), ("llama", "fsdp"), ("gpt2", "fsdp")])
def test_two_processes_make_what_one_makes(
    tiny_target: Callable[..., Path], built: Callable[..., Path], family: str, mode: str
) -> None:
    alone, together = built(tiny_target, family, "alone"), built(tiny_target, family, mode)
    assert len(kept(alone, "text")) == 9  # eight shards and what is known of them
    assert kept(together, "text") == kept(alone, "text")
    assert len(kept(alone, "teacher")) == 3
    assert kept(together, "teacher") == kept(alone, "teacher")
    for name in ("tiny", "tiny--raw"):
        Artifact.open(together / name).verify()
    assert weights(together / "tiny--raw") == weights(alone / "tiny--raw")
    one, two = facts(alone), facts(together)
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["trained_tokens"] == one["trained_tokens"]
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-3)
    assert one["held_out_after"]["overlap"] > one["held_out_before"]["overlap"] + 0.02
    assert two["held_out_after"]["overlap"] == pytest.approx(one["held_out_after"]["overlap"], abs=1e-4)
    if family == "gpt2":
        one, two = facts(alone, 2), facts(together, 2)
        assert two["held_out_before"]["overlap"] == pytest.approx(facts(alone)["held_out_after"]["overlap"], abs=1e-4)
        # The steps are made with the weights themselves. Sums in another order grow over such large steps: on one CPU
        # to .2 % of a loss.
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-2)
        assert two["held_out_after"]["overlap"] == pytest.approx(one["held_out_after"]["overlap"], abs=2e-3)
        model = models.load_model(together / "tiny" / "model", dtype=torch.float32)
        assert not torch.equal(model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    # The first process alone speaks.
    said, shown = (together / "said.txt").read_text(), (together / "shown.txt").read_text()
    assert [sorted(made["name"] for made in json.loads(said.splitlines()[-1])["artifacts"])] == [["tiny", "tiny--raw"]]
    assert said.count("held-out overlap") == 1
    assert shown.count("loading the target: ") == 1
    assert "process 1" not in shown and "Warning" not in shown.replace("To avoid this warning", "")
    assert not list((together / ".cache").rglob("*.working"))


@pytest.mark.slow
def test_killed_in_the_middle_all_end_and_the_same_command_goes_on(
    tiny_target: Callable[..., Path],
    built: Callable[..., Path],
    tmp_path: Path,
    processes_of: Callable[[subprocess.Popen[str]], dict[str, int]],
) -> None:
    undisturbed, cut, alone = built(tiny_target, "llama", "ddp"), tmp_path / "cut", tmp_path / "alone"
    recipe = undisturbed.parent / "recipe.yaml"
    process = launch("torchrun", str(recipe), "--out", str(cut), "--quiet")
    while not list(cut.glob(".cache/stages/*.working/checkpoint.pt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    launched = processes_of(process)
    assert set(launched) == {"0", "1"}
    os.kill(launched["1"], signal.SIGKILL)
    process.communicate(timeout=30)
    assert process.returncode != 0 and ended(launched)
    assert not (cut / "tiny").exists()
    shutil.copytree(cut, alone)
    process = launch("torchrun", str(recipe), "--out", str(cut), "--quiet")
    _, shown = process.communicate(timeout=120)
    assert process.returncode == 0, shown
    assert weights(cut / "tiny") == weights(undisturbed / "tiny")
    # What two began, one can end; only its sums are made in another order.
    first: list[int] = []
    build(load(recipe), alone, lambda done, _total, what: first.append(done) if "distilling" in what else None)
    assert first[0] >= 5
    assert facts(alone)["losses"] == pytest.approx(facts(undisturbed)["losses"], rel=1e-3)


def test_a_launched_process_ends_with_its_launcher() -> None:
    """It waits for one that never comes, and would for days."""
    waits = "from factory.processes import launched; launched()"
    launcher = (
        f"import subprocess, sys; one = subprocess.Popen([sys.executable, '-c', {waits!r}]); "
        "print(one.pid, flush=True); one.wait()"
    )
    told = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    environment = {**os.environ, **told, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", launcher], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    waiting = {"1": int(process.stdout.readline())}
    time.sleep(1)
    assert alive(waiting["1"])
    process.kill()
    process.communicate()
    assert ended(waiting)


@pytest.mark.slow
def test_what_cannot_be_shared_is_said_at_once_and_all_end(
    tiny_target: Callable[..., Path],
    tmp_path: Path,
    processes_of: Callable[[subprocess.Popen[str]], dict[str, int]],
) -> None:
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text(RECIPE.format(target=tiny_target("llama", tmp_path / "target")).replace("batch: 8,", "batch: 1,"))
    process = launch("torchrun", str(recipe), "--out", str(out), "--quiet")
    launched: dict[str, int] = {}
    while process.poll() is None:
        launched |= processes_of(process)
        time.sleep(0.1)
    said, shown = process.communicate()
    assert process.returncode == 1  # the launcher's own; what each process ended with stands in what it says
    assert said == ""
    assert f"{recipe}:7: stages.1: distill: `batch: 1` rows cannot be shared among 2 processes; write a larger" in shown
    assert "exitcode  : 2" in shown
    assert "a fault of this program" not in shown
    assert ended(launched) and len(launched) == 2
    assert not (out / ".cache").exists()


@pytest.mark.slow
def test_a_process_that_fails_on_its_own_does_not_leave_the_others_waiting(
    tiny_target: Callable[..., Path], tmp_path: Path
) -> None:
    """Only the second process has the second shard to write, and there it meets a folder."""
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text(RECIPE.format(target=tiny_target("llama", tmp_path / "target")))
    out.mkdir()
    (job,) = _jobs(load(recipe), out, silent)
    (job.text_folder / "shard-00001.parquet" / "in the way").mkdir(parents=True)
    process = launch("torchrun", str(recipe), "--out", str(out), "--quiet")
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"process 1 of 2 (counted from 0): {job.text_folder}" in shown
    assert "mend that and run the same command again" in shown
    assert "a fault of this program" not in shown
