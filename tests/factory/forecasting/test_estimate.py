"""What a recipe's forecast says and refuses."""

import json
import subprocess
import sys
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import constants

from factory import hub
from factory.errors import FactoryError, UnsupportedModel
from factory.forecasting.estimate import Forecast, forecast_recipe
from factory.forecasting.forecast import (
    LOW_CEILING,
)
from factory.forecasting.profile import BUILT_IN, DeviceProfile
from factory.recipes.recipe import load
from factory.wording import count, seconds, size

RECIPES = Path(__file__).parents[3] / "recipes"


LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "max_position_embeddings": 4096,
    "vocab_size": 32000,
}


HALF = """\
name: half
target: {model: someone/llama, dtype: bfloat16, config: config.json}
data: {prompts: bos, samples: 1000}
stages:
  - {kind: drop_layers, keep: 16}
  - {kind: distill, epochs: 2}
"""


def forecast(tmp_path: Path, recipe: str = HALF, device: DeviceProfile = BUILT_IN["h200"], **config: int) -> Forecast:
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, **config}))
    (tmp_path / "r.yaml").write_text(recipe)
    (loaded,) = load(tmp_path / "r.yaml")
    found = forecast_recipe(loaded, device)
    assert found is not None
    return found


def test_a_recipes_forecast(tmp_path: Path) -> None:
    found = forecast(tmp_path)
    assert [step.what for step in found.steps] == ["target", "text", "drop_layers", "distill"]
    assert (found.target.parameters, found.drafter.layers) == (6_738_415_616, 16)
    assert found.in_bytes.c == pytest.approx(0.51, abs=5e-4)
    assert found.in_bytes.best(0.8)[0] < LOW_CEILING
    assert any(warning.startswith("the ceiling is low: at alpha .80") for warning in found.warnings)
    assert found.fits
    found.refuse()
    shown = "\n".join(found.lines())
    assert "32 -> 16 layers" in shown and "c = 0.510 in bytes" in shown and "1.21x@2" in shown
    assert "not measured here" in shown and "fits: peak memory" in shown and "13.5 GB" in shown
    record = json.loads(json.dumps(found.record()))
    assert record["c_bytes"] == found.in_bytes.c and record["fits"] is True
    assert record["best"]["bytes"][2] == {"alpha": 0.8, "speedup": found.in_bytes.best(0.8)[0], "k": 2}
    assert [step["parameters"] for step in record["steps"]] == [step.shape.parameters for step in found.steps]


def test_a_teacher_cache_is_a_step_and_spares_the_target_later(tmp_path: Path) -> None:
    online = forecast(tmp_path)
    found = forecast(tmp_path, HALF.replace("epochs: 2", "epochs: 2, teacher: cache, top_k: 64, drawn: 0"))
    assert [step.what for step in found.steps] == ["target", "text", "teacher", "drop_layers", "distill"]
    effort, trained, before = found.steps[2].effort, found.steps[-1].effort, online.steps[-1].effort
    assert effort is not None and trained is not None and before is not None
    assert effort.disk_bytes == 1000 * 256 * (64 * 4 + 4)  # 32,000 ids fit into 16 bits
    assert effort.memory_bytes > found.target.weight_bytes
    assert effort.seconds > 2 * found.target.parameters * 1000 * 256 / BUILT_IN["h200"].peak("bfloat16")
    assert trained.seconds < before.seconds and trained.memory_bytes <= before.memory_bytes
    assert found.disk_bytes == online.disk_bytes + effort.disk_bytes
    wide = forecast(tmp_path, HALF.replace("epochs: 2", "teacher: cache, top_k: 64, drawn: 0"), vocab_size=128_256)
    assert wide.steps[2].effort is not None and wide.steps[2].effort.disk_bytes == 1000 * 256 * (64 * 6 + 4)


def test_files_are_counted_in_the_dtype_that_they_are_stored_in(tmp_path: Path) -> None:
    """A bfloat16 checkpoint computes in float32 on a CPU, and is downloaded and written as it was."""
    recipe = HALF.replace("dtype: bfloat16, ", "")
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "dtype": "bfloat16"}))
    (tmp_path / "r.yaml").write_text(recipe)
    (loaded,) = load(tmp_path / "r.yaml")
    here, there = (forecast_recipe(loaded, BUILT_IN[device]) for device in ("cpu", "h200"))
    assert here is not None and there is not None
    whole = 2 * 6_738_415_616
    assert (here.dtype, there.dtype) == ("float32", "bfloat16")
    for found in (here, there):
        assert (found.target.weight_bytes, found.download_bytes) == (whole, whole)
        assert found.drafter.weight_bytes == 2 * found.drafter.parameters
    assert here.disk_bytes == there.disk_bytes
    assert here.in_bytes.c == pytest.approx(there.in_bytes.c, abs=1e-3)
    writing_memory = [found.steps[1].effort.memory_bytes for found in (here, there) if found.steps[1].effort]
    assert writing_memory[0] > 2 * whole > writing_memory[1] > whole  # what runs is float32 there
    assert here.in_time.target_s > 2 * whole / BUILT_IN["cpu"].bandwidth_bytes_per_s * 0.95
    (loaded,) = load(tmp_path / "r.yaml", ["target.dtype=float16"])
    cast = forecast_recipe(loaded, BUILT_IN["cpu"], config={**LLAMA, "dtype": "float32"})
    assert cast is not None and (cast.download_bytes, cast.drafter.bits) == (2 * whole, 16)


def test_a_config_that_is_given_comes_before_the_recipes(tmp_path: Path) -> None:
    forecast(tmp_path)
    (loaded,) = load(tmp_path / "r.yaml")
    found = forecast_recipe(loaded, BUILT_IN["h200"], config={**LLAMA, "num_hidden_layers": 24})
    assert found is not None and found.target.layers == 24


def test_few_layers_are_not_warned_about(tmp_path: Path) -> None:
    assert forecast(tmp_path, HALF.replace("keep: 16", "keep: 2")).warnings == ()


def test_the_host_is_named_where_it_decides(tmp_path: Path) -> None:
    slow = replace(BUILT_IN["h200"], step_overhead_s=0.02)
    found = forecast(tmp_path, HALF.replace("keep: 16", "keep: 4"), slow)
    assert found.in_bytes.best(0.8)[0] > LOW_CEILING > found.in_time.best(0.8)[0]
    assert any(warning.startswith("this engine on this device") for warning in found.warnings)


def test_what_does_not_fit_is_refused_and_named(tmp_path: Path) -> None:
    found = forecast(tmp_path, device=replace(BUILT_IN["h200"], memory_bytes=40 * 10**9))
    assert not found.fits
    with pytest.raises(FactoryError, match=r"half: distill needs about \d+\.\d GB of memory.*has 40\.0 GB"):
        found.refuse()
    unknown = forecast(tmp_path, device=replace(BUILT_IN["h200"], memory_bytes=None))
    assert unknown.fits


def test_a_disk_that_is_too_small_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forecast(tmp_path)
    (loaded,) = load(tmp_path / "r.yaml")
    monkeypatch.setattr("factory.forecasting.estimate.free_bytes", lambda _out: 10**9)
    assert forecast_recipe(loaded, BUILT_IN["h200"]).fits  # type: ignore[union-attr]
    found = forecast_recipe(loaded, BUILT_IN["h200"], out=tmp_path)
    assert found is not None and "of disk, and 1.0 GB are free" in found.faults[0]


def test_without_a_config_there_is_no_forecast_and_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []
    monkeypatch.setattr("factory.forecasting.estimate.hub_config", lambda *what: asked.append(what))
    (tmp_path / "r.yaml").write_text(HALF.replace(", config: config.json", ""))
    (loaded,) = load(tmp_path / "r.yaml")
    assert forecast_recipe(loaded, BUILT_IN["cpu"]) is None
    assert asked == [("someone/llama", None)]
    found = forecast_recipe(loaded, BUILT_IN["cpu"], config=LLAMA)
    assert found is not None and found.target.layers == 32 and len(asked) == 1
    monkeypatch.setattr("factory.forecasting.estimate.hub_config", lambda *_what: {**LLAMA, "num_hidden_layers": 24})
    found = forecast_recipe(loaded, BUILT_IN["cpu"])
    assert found is not None and found.target.layers == 24


@pytest.mark.parametrize(
    ("status", "body", "layers"), [(200, json.dumps(LLAMA), 32), (401, "{}", None), (200, "<html>", None)]
)
def test_a_config_from_a_hub(monkeypatch: pytest.MonkeyPatch, status: int, body: str, layers: int | None) -> None:
    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/someone/llama/resolve/main/config.json" else 404)
            self.end_headers()
            self.wfile.write(body.encode())

        def do_HEAD(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.config_or_reason.cache_clear()
    try:
        found = hub.hub_config("someone/llama")
        assert (found and found["num_hidden_layers"]) == layers
        assert hub.hub_config("someone/else") is None
    finally:
        server.shutdown()
        hub.config_or_reason.cache_clear()


def test_a_hub_that_is_not_there_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.config_or_reason.cache_clear()
    assert hub.hub_config("someone/llama") is None


def test_what_cannot_be_done_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"r\.yaml:5: stages\.0: drop_layers: keep is 16, the model has 8"):
        forecast(tmp_path, num_hidden_layers=8)


def test_sizes_are_said_in_short() -> None:
    assert (count(6_738_415_616), count(12_330_000), count(900)) == ("6.74 B", "12.33 M", "900")
    assert (size(13_476_831_232), size(None), size(12)) == ("13.5 GB", "unknown", "12 B")
    assert (seconds(0.0032), seconds(90), seconds(5400)) == ("3.20 ms", "1.5 min", "1.5 h")


def test_a_forecast_imports_no_torch() -> None:
    code = "import sys, factory.forecasting.estimate, factory.forecasting.defaults; "
    code += "print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("recipe", "c"),
    [
        ("llama2-prune50", [0.030, 0.041, 0.062, 0.105]),
        ("llama3-8b-layers", [0.128, 0.186, 0.302]),
        ("qwen3-8b-layers5", [0.210]),
        ("gpt2-layers2", [0.427]),
    ],
)
def test_the_catalogue_says_what_the_shipped_recipes_cost(recipe: str, c: list[float]) -> None:
    found = [forecast_recipe(loaded, BUILT_IN["h200"]) for loaded in load(RECIPES / f"{recipe}.yaml")]
    assert [each and round(each.in_bytes.c, 3) for each in found] == c
    assert all(each and each.fits for each in found)
    row = next(line for line in (RECIPES / "README.md").read_text().splitlines() if f"({recipe}.yaml)" in line)
    assert ", ".join(f"{each:.3f}" for each in c) in row


def test_more_prompts_than_the_target_continues_are_warned_about(tmp_path: Path) -> None:
    prompts = "{dataset: a/b, column: c, samples: 5000}"
    found = forecast(tmp_path, HALF.replace("keep: 16", "keep: 2").replace("prompts: bos", f"prompts: {prompts}"))
    assert any("of 5,000 prompts the target continues 1,000" in warning for warning in found.warnings)
