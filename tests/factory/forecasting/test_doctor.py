"""What `factory doctor` finds here, and that the profile it measures is kept and used. No test asserts a time."""

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from factory import hub
from factory.forecasting import doctor, gauge
from factory.forecasting import profile as profiles
from factory.forecasting.profile import BUILT_IN, load


@pytest.fixture(autouse=True)
def _small_and_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(gauge, "_CACHED_BYTES", (1 << 20, 2 << 20))
    monkeypatch.setattr(gauge, "_TOKENS", 6)
    monkeypatch.setattr(profiles, "STREAMED_BYTES", 4 << 20)
    monkeypatch.setattr(gauge, "_MATRIX", 128)
    monkeypatch.setattr(gauge, "_BUDGET_S", 0.0)
    monkeypatch.setattr(gauge, "_PRODUCT_S", 0.0)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # what the network is like is no part of a test


def test_without_measuring_nothing_is_written(tmp_path: Path) -> None:
    found = doctor.examine(measure=False, folder=tmp_path / "not" / "there")
    assert found.profile_file is None and not found.profile.measured and not list(tmp_path.rglob("*.json"))
    assert found.free_disk_bytes > 0
    shown = "\n".join(found.lines())
    assert f"torch {version('torch')}" in shown and "transformers" in shown
    assert "nothing was measured" in shown and "not measured here" in shown
    assert found.hub.startswith("offline") and found.hub in shown
    assert all(word in found.kernels for word in ("CUDA", "triton", "gptqmodel", "C++ compiler"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="looks at the CPU's profile")
def test_what_is_measured_is_what_forecasts_use_from_then_on() -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    found = doctor.examine(measure=True)
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)
    used = load()
    assert found.profile_file is not None and used.measured and used.kind == "cpu"
    now = {"memory_bytes": None, "available_bytes": None}
    assert replace(used, **now) == replace(found.profile, **now)  # type: ignore[arg-type]
    assert used.bandwidth_bytes_per_s > 0 and min(used.peak_flop_per_s.values()) > 0
    assert [rows for rows, _ in used.few_rows_flop_per_s["float32"]] == list(gauge.ROWS)
    assert used.layer_overhead_s >= 0 and used.threads == threads
    assert str(found.profile_file) in "\n".join(found.lines())
    assert found.record()["profile"] == found.profile.record()


def test_streaming_counts_the_bytes_that_it_reads() -> None:
    taken_s, read = gauge._streaming("cpu", torch.float32, 2, 1 << 20)
    assert taken_s > 0 and read == 1 << 20


def test_the_fastest_run_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 9.0, 10.0, 13.0, 20.0, 22.0, 30.0, 35.0, 40.0, 80.0])
    monkeypatch.setattr(gauge.time, "perf_counter", lambda: next(clock))
    # 9 s warm up and do not count; then 3, 2, 5 and 40 s, which ends it.
    assert gauge._fastest_s(lambda: None, "cpu", budget_s=20.0) == 2.0


def test_overheads_are_differences_of_depths_and_of_k(monkeypatch: pytest.MonkeyPatch) -> None:
    # seconds a round: plain at 2 and 10 layers; rounds of (2 layers, k = 1), (2, 4), (10, 4)
    taken = iter([0.5, 0.9, 1.4, 2.6, 3.4])
    monkeypatch.setattr(gauge, "_seconds", lambda *_: next(taken))
    with torch.inference_mode():
        found = gauge._overheads("cpu")
    assert found == {
        "layer_overhead_s": pytest.approx(0.05),
        "verify_layer_overhead_s": pytest.approx(0.1),
        "step_overhead_s": pytest.approx(0.4),  # .5 less two layers
        "draft_overhead_s": pytest.approx(0.3),  # (2.6 - 1.4) / 3 less two layers
        "round_overhead_s": pytest.approx(0.4),  # 2.6 less four draft steps of .4, two layers of .1 and a step of .4
    }


@pytest.mark.parametrize("k", [1, 4])
def test_what_is_timed_is_whole_rounds(k: int) -> None:
    from factory.decoding.drafters import ModelDrafter
    from factory.decoding.readers import open_reader

    reader = open_reader(gauge._tiny_llama(2, "cpu"))
    twin = ModelDrafter(open_reader(gauge._tiny_llama(2, "cpu")), "twin")
    rounds = gauge._write(reader, twin, k)  # every guess is accepted
    assert rounds == -(-(gauge._TOKENS * (k + 1) // 2) // (k + 1))


def test_an_unreachable_hub_is_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    assert hub.hub_access(0.5).startswith("offline: not reachable (")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in hub.hub_access(0.5)


def test_a_damaged_profile_is_measured_again(tmp_path: Path) -> None:
    path = profiles.profile_file("cpu")
    path.parent.mkdir(parents=True)
    path.write_text("not json")
    assert load("cpu").name == BUILT_IN["cpu"].name
    profiles.store(gauge.measured("cpu", "here"))
    assert load("cpu").name == "here"
