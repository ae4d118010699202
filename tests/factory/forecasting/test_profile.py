"""Which profile is taken, what it says of itself, and that a damaged file is none."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from factory.errors import FactoryError
from factory.forecasting import profile as profiles
from factory.forecasting.profile import BUILT_IN, DeviceProfile, load, named, profile_file, store

MINE = DeviceProfile(
    name="Mine",
    kind="cpu",
    measured=True,
    source="`factory doctor`",
    memory_bytes=1,
    available_bytes=1,
    bandwidth_bytes_per_s=3e9,
    peak_flop_per_s={"float32": 5e9, "bfloat16": 7e9},
    few_rows_flop_per_s={"float32": ((2, 1e9), (5, 2e9))},
    layer_overhead_s=1e-3,
    threads=3,
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(profiles, "_gpu", lambda: None)


def test_without_a_measurement_the_built_in_says_so() -> None:
    found = load()
    total, _ = profiles.machine_memory()
    assert (found.kind, found.measured, found.memory_bytes) == ("cpu", False, total)
    assert found.bandwidth_bytes_per_s == 25e9 and found.peak("float32") == 136e9
    assert "not measured here" in found.words and "AMD EPYC" in found.words


def test_what_was_measured_is_taken_from_then_on() -> None:
    assert store(MINE) == profile_file("cpu")
    found = load()
    total, _ = profiles.machine_memory()
    assert found.memory_bytes == total  # read anew: another process may have taken some
    assert replace(found, memory_bytes=1, available_bytes=1) == MINE
    assert named("cpu") == replace(MINE, memory_bytes=total, available_bytes=named("cpu").available_bytes)
    assert "measured here" in found.words and "not measured" not in found.words


@pytest.mark.parametrize(
    "change",
    [{"kind": "cuda"}, {"bandwidth_bytes_per_s": 0}, {"peak_flop_per_s": {"float32": 1.0}}, {"few_rows_flop_per_s": 1}],
)
def test_a_damaged_file_is_not_a_measurement(change: dict[str, object]) -> None:
    path = store(MINE)
    path.write_text(json.dumps({**MINE.record(), **change}))
    assert load().name == BUILT_IN["cpu"].name
    path.write_text("{")
    assert load().name == BUILT_IN["cpu"].name


def test_a_gpu_that_the_driver_shows_decides_the_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, "_gpu", lambda: ("NVIDIA H200", 150 << 30, 140 << 30))
    found = load()
    assert (found.kind, found.memory_bytes, found.available_bytes) == ("cuda", 150 << 30, 140 << 30)
    assert found.bandwidth_bytes_per_s == 4.3e12 and not found.measured
    store(replace(MINE, kind="cuda", name="NVIDIA H200"))
    assert load().measured and load().memory_bytes == 150 << 30
    assert load("cpu").kind == "cpu"
    monkeypatch.setattr(profiles, "_gpu", lambda: ("Another", 8 << 30, 8 << 30))  # the measured card is gone
    assert not load().measured and load().name.startswith("Another, taken for")


def test_named_devices() -> None:
    assert named("h200") is BUILT_IN["h200"] and named("here") == load()
    assert named("h200").default_dtype() == "bfloat16" and load().default_dtype() == "float32"
    assert load().default_dtype("float64") == "float64"
    with pytest.raises(FactoryError, match=r"--device h20: no such profile; did you mean 'h200'\?$"):
        named("h20")


def test_every_built_in_says_where_it_is_from() -> None:
    for built_in in BUILT_IN.values():
        assert not built_in.measured and built_in.source
        assert built_in.peak("float64") == built_in.peak("float32") / 2
        assert built_in.peak("float16") == built_in.peak("bfloat16")


def test_the_rate_of_a_few_rows() -> None:
    # 2 rows take 2 / 1e9 a weight and operation, 5 rows 5 / 2e9: in between the time is a line.
    assert MINE.peak("float32", 2) == pytest.approx(1e9) and MINE.peak("float32", 5) == pytest.approx(2e9)
    halfway_s = (2 / 1e9 * 2 + 5 / 2e9) / 3
    assert MINE.peak("float32", 3) == pytest.approx(3 / halfway_s)
    assert MINE.peak("float32", 1) == 5e9 and MINE.peak("float32", 20) == 2e9  # one row is bound by reading
    assert MINE.peak("float32", 1000) == MINE.peak("float32") == 5e9
    assert MINE.peak("bfloat16", 3) == 7e9  # not measured with few rows


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(FactoryError, match=r"cannot be written .*XDG_CACHE_HOME"):
        store(MINE)


def test_the_bandwidth_of_models_that_a_cache_holds() -> None:
    whole = replace(BUILT_IN["cpu"], bandwidth_bytes_per_s=1e9, cached_bytes_per_s=((1 << 20, 4e9), (1 << 28, 2e9)))
    assert whole.bandwidth(1) == whole.bandwidth(1 << 20) == 4e9
    assert whole.bandwidth(1 << 28) == pytest.approx(2e9)
    assert 1e9 < whole.bandwidth((1 << 28) + (1 << 27)) < 2e9
    assert whole.bandwidth(1 << 29) == pytest.approx(1e9) and whole.bandwidth(1 << 33) == 1e9
    assert BUILT_IN["cpu"].bandwidth(1) == 25e9
    seconds = [size / whole.bandwidth(size) for size in range(1 << 18, 1 << 30, 1 << 22)]
    assert seconds == sorted(seconds)  # more bytes never take less time
