"""The teacher cache against uncached float64, byte for byte however it was written, and what it refuses."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from factory.data.blocks import TextBlocks, text_blocks
from factory.errors import DataError, ModelError
from factory.files.disk import DiskError
from factory.given import CacheSettings
from factory.teaching import teacher_cache, teacher_shards
from factory.teaching.teacher_cache import TeacherCache, write_cache
from factory.teaching.teacher_shards import is_finished, lying_bytes, normalised

KEY = {"target": "abc", "text": "def", "dtype": "auto"}
LLAMA = pytest.mark.parametrize("tiny", ["llama"], indirect=True)


def silent(_done: int, _total: int, _what: str) -> None:
    pass


def blocks(rows: int, vocabulary: int = 96) -> TextBlocks:
    """Rows of 3 to 12 tokens with prompts of 2; the last but one is all prompt."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 13, (rows,), generator=generator).tolist()
    lengths[-2] = 2
    return text_blocks([(torch.randint(3, vocabulary, (n,), generator=generator).tolist(), 2) for n in lengths])


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of four rows, read two at once, and logits of few positions at once: every seam is crossed."""
    monkeypatch.setattr(teacher_shards, "CACHE_SHARD_ROWS", 4)
    monkeypatch.setattr(teacher_cache, "READ_ROWS", 2)
    monkeypatch.setattr(teacher_cache, "LOGITS_BYTES", 4 * 96 * 3)


def write(
    target: PreTrainedModel, text: TextBlocks, folder: Path, temperature: float = 1.0, top_k: int = 8, **more: int
) -> None:
    write_cache(target, text, CacheSettings(temperature, top_k), folder=folder, key=KEY, progress=silent, **more)


def predictions(target: PreTrainedModel, text: TextBlocks, row: int, temperature: float) -> torch.Tensor:
    """The target's log-probabilities at a row's answer positions, straight from its logits: [n, V] float64."""
    ids = text.ids[row : row + 1, : int(text.length[row])]
    with torch.no_grad():
        logits = target(input_ids=ids, use_cache=False).logits[0]
    first = 1  # the token before the first that is no prompt
    return torch.log_softmax(logits[first:-1].double() / temperature, -1)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.usefixtures("few_rows")
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_what_is_read_is_what_the_target_predicts(
    tiny: Callable[..., PreTrainedModel], tmp_path: Path, temperature: float
) -> None:
    target, text = tiny(), blocks(11)
    write(target, text, tmp_path, temperature)
    cache = TeacherCache.open(tmp_path, {**KEY, "temperature": temperature, "top_k": 8})
    assert len(cache) == 11
    for chosen in ([0], [7, 2, 10], [9], [5, 9, 4], []):
        ids, log_p, tail = cache.rows(chosen)
        expected = torch.cat(
            [torch.zeros(0, 96).double(), *(predictions(target, text, row, temperature) for row in chosen)]
        )
        assert (ids.dtype, log_p.dtype, tail.dtype) == (torch.int64, torch.float16, torch.float32)
        assert ids.shape == log_p.shape == (len(expected), 8) and tail.shape == (len(expected),)
        best = expected.topk(8, -1)
        assert torch.equal(ids, best.indices)
        assert bool(((log_p - best.values).abs() <= best.values.abs() * 2**-11 + 1e-6).all())
        assert torch.allclose(tail.double(), 1 - best.values.exp().sum(-1), rtol=1e-5, atol=1e-6)
        assert bool((tail >= 0).all())
        entropy = -(expected.exp() * expected).sum(-1)
        assert bool(((log_p.double().exp().sum(-1) + tail - 1).abs() <= entropy * 2**-11 + 1e-6).all())
        log_p, tail = normalised(log_p, tail)
        assert torch.allclose(log_p.exp().sum(-1) + tail, torch.ones(len(ids)), atol=1e-6)


@LLAMA
@pytest.mark.usefixtures("few_rows")
def test_what_is_kept_moves_an_overlap_by_no_more_than_it_says(
    tiny: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    """Against the overlap with the target itself, where p and q share all of the tail or nothing of it."""
    target, text = tiny(initializer_range=0.2), blocks(11)
    write(target, text, tmp_path)
    cache = TeacherCache.open(tmp_path)
    assert cache.temperature == 1.0
    facts = cache.facts
    p = torch.cat([predictions(target, text, row, 1.0) for row in range(11)]).exp()
    ids, *stored = cache.rows(range(11))
    log_p, tail = normalised(*stored)
    generator = torch.Generator().manual_seed(1)
    for q in (p, torch.softmax(torch.randn(p.shape, generator=generator, dtype=torch.float64) * 3, -1)):
        true = torch.minimum(p, q).sum(-1).mean()
        kept = q.gather(-1, ids)
        shared = torch.minimum(log_p.double().exp(), kept).sum(-1)
        coarse = (shared + torch.minimum(tail.double(), 1 - kept.sum(-1))).mean()
        assert abs(float(coarse - true)) <= facts["alpha_bound"] + 1e-7
    assert facts["mean_tail"] == pytest.approx(float(1 - p.topk(8, -1).values.sum(-1).mean()), abs=1e-6)
    assert facts["max_tail"] == pytest.approx(float((1 - p.topk(8, -1).values.sum(-1)).max()), abs=1e-6)
    assert 0 < facts["mean_rounding"] < 2**-10 * float(-(p * p.log()).sum(-1).mean())
    assert facts["alpha_bound"] == pytest.approx(facts["mean_tail"] + facts["mean_rounding"])
    assert facts["positions"] == int(text.answer_mask.sum()) == len(ids)
    files = [path for path in tmp_path.iterdir() if path.suffix == ".safetensors"]
    assert facts["bytes"] == sum(path.stat().st_size for path in files) == lying_bytes(tmp_path)
    assert facts["share_of_full_float16"] == pytest.approx(facts["bytes"] / facts["positions"] / (2 * 96))


@LLAMA
def test_more_than_all_tokens_are_all_tokens(tiny: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    target, text = tiny(), blocks(3)
    write(target, text, tmp_path, top_k=1000)
    cache = TeacherCache.open(tmp_path, {"top_k": 1000})
    ids, log_p, tail = cache.rows([0, 2])
    assert ids.shape[1] == cache.facts["kept"] == 96
    assert not tail.any() and bool(log_p.isfinite().all())
    expected = torch.cat([predictions(target, text, row, 1.0) for row in (0, 2)])
    assert torch.allclose(log_p.exp().double(), expected.gather(-1, ids).exp(), atol=2e-3)
    with pytest.raises(IndexError, match="row 3 of a text of 3"):
        cache.rows([3])


@LLAMA
@pytest.mark.parametrize("vocabulary", [40_000, 70_000])
def test_ids_beyond_15_and_16_bits_come_back(
    tiny: Callable[..., PreTrainedModel], tmp_path: Path, vocabulary: int
) -> None:
    target, text = tiny(layers=1, vocabulary=vocabulary, dtype=torch.float32), blocks(3, vocabulary)
    write(target, text, tmp_path, top_k=50)
    ids, _, tail = TeacherCache.open(tmp_path, KEY).rows([0])
    assert torch.equal(ids, predictions(target, text, 0, 1.0).topk(50, -1).indices)
    assert int(ids.max()) > vocabulary - 8000 and bool((tail > 0).all())


@LLAMA
@pytest.mark.usefixtures("few_rows")
def test_neither_a_kill_nor_processes_change_a_byte(tiny: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    target, text = tiny(), blocks(11)
    write(target, text, tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    assert sorted(whole) == ["meta.json", *(f"shard-0000{number}.safetensors" for number in range(3))]

    write(target, text, tmp_path / "cut")
    for name in ("meta.json", "shard-00002.safetensors", "shard-00001.safetensors"):
        (tmp_path / "cut" / name).unlink()
    stamp = (tmp_path / "cut" / "shard-00000.safetensors").stat().st_mtime_ns
    assert not is_finished(tmp_path / "cut")
    write(target, text, tmp_path / "cut")
    assert contents(tmp_path / "cut") == whole and is_finished(tmp_path / "cut")
    assert (tmp_path / "cut" / "shard-00000.safetensors").stat().st_mtime_ns == stamp

    for rank in (1, 0):
        with pytest.raises(DataError, match="no finished teacher cache"):
            TeacherCache.open(tmp_path / "shared", KEY)
        write(target, text, tmp_path / "shared", rank=rank, world=2)
    assert contents(tmp_path / "shared") == whole


@LLAMA
def test_a_cache_of_something_else_is_refused_and_kept(tiny: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    target, text = tiny(), blocks(3)
    write(target, text, tmp_path)
    before = contents(tmp_path)
    for name, other in {"target": "xyz", "text": "xyz", "dtype": "float16", "temperature": 2.0, "top_k": 9}.items():
        with pytest.raises(DataError, match=rf"a teacher cache of another {name} .* remove this folder and build"):
            TeacherCache.open(tmp_path, {**KEY, name: other})
    with pytest.raises(DataError, match=r"of another temperature and top_k"):
        write(target, text, tmp_path, temperature=2.0, top_k=9)
    (tmp_path / "meta.json").unlink()  # as one that was not finished
    with pytest.raises(DataError, match=r"shard-00000\.safetensors: part of a teacher cache of something else"):
        write(target, text, tmp_path, temperature=2.0)
    assert contents(tmp_path) == {name: content for name, content in before.items() if name != "meta.json"}


@LLAMA
@pytest.mark.usefixtures("few_rows")
def test_damage_is_named_and_written_anew(tiny: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    target, text = tiny(), blocks(11)
    write(target, text, tmp_path)
    whole, path = contents(tmp_path), tmp_path / "shard-00001.safetensors"
    content = whole[path.name]
    for damaged, said in ((content[:-40], "bytes long instead of"), (None, "missing")):
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        assert not is_finished(tmp_path)
        with pytest.raises(DataError, match=rf"shard-00001\.safetensors: .*{said}.*remove this file and build again"):
            TeacherCache.open(tmp_path, KEY)
        write(target, text, tmp_path)
        assert contents(tmp_path) == whole
    for damaged in (content[:400] + bytes(len(content) - 400), bytes(len(content))):  # as a disk loses pages
        path.write_bytes(damaged)
        cache = TeacherCache.open(tmp_path, KEY)
        cache.rows([0, 3, 8, 10])
        with pytest.raises(DataError, match=r"shard-00001\.safetensors: .*remove this file and build again"):
            cache.rows([6])
    path.unlink()
    write(target, text, tmp_path)
    assert contents(tmp_path) == whole
    (tmp_path / "meta.json").write_text("{")
    with pytest.raises(DataError, match=r"meta\.json: damaged .* the shards are kept"):
        TeacherCache.open(tmp_path, KEY)


@LLAMA
@pytest.mark.parametrize("top_k", [8, 96])
def test_a_prediction_that_is_no_number_is_refused(
    tiny: Callable[..., PreTrainedModel], tmp_path: Path, top_k: int
) -> None:
    target = tiny()
    with torch.no_grad():
        target.get_output_embeddings().weight[5] = torch.nan
    with pytest.raises(ModelError, match="a prediction in rows 0 to 2 of the text is NaN"):
        write(target, blocks(3), tmp_path, top_k=top_k)
    assert contents(tmp_path) == {}


FULL = """\
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_teacher_cache import blocks, write
from factory.models import loading as models
from factory.teaching import teacher_cache
from factory.teaching import teacher_shards
teacher_shards.CACHE_SHARD_ROWS = 4
write(models.load_model(sys.argv[2], dtype=models.DTYPES["float32"]), blocks(11), Path(sys.argv[3]))
"""


def test_a_full_disk_is_said_and_the_same_command_goes_on(tiny_target: Callable[..., Path], tmp_path: Path) -> None:
    """A limit on the size of files fails where a full disk does: here in the second shard of three."""
    folder = tiny_target("llama", tmp_path / "target")

    def run(out: Path, largest_file: int = resource.RLIM_INFINITY) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", FULL, str(Path(__file__).parent), str(folder), str(out)],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file)),
        )

    assert run(tmp_path / "whole").returncode == 0
    whole = contents(tmp_path / "whole")
    sizes = [len(whole[f"shard-0000{number}.safetensors"]) for number in range(3)]
    assert sizes[0] < sizes[1]
    cut = run(tmp_path / "cut", sizes[1] - 1)
    assert f"{DiskError.__name__}: {tmp_path / 'cut'}" in cut.stderr, cut.stderr
    assert "make room there and run the same command again; what is finished is kept" in cut.stderr
    assert list(contents(tmp_path / "cut")) == ["shard-00000.safetensors"]
    assert run(tmp_path / "cut").returncode == 0
    assert contents(tmp_path / "cut") == whole


@LLAMA
def test_meta_says_what_it_is_of(tiny: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    write(tiny(), blocks(3), tmp_path, temperature=0.7, top_k=5)
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta["key"] == {**KEY, "temperature": 0.7, "top_k": 5, "drawn": 0}
    assert meta["bytes_per_position"] == meta["bytes"] / meta["positions"]


@LLAMA
@pytest.mark.usefixtures("few_rows")
def test_drawn_tokens_come_in_proportion_and_are_the_same_however_written(
    tiny: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    target, text = tiny(initializer_range=0.2), blocks(11)
    settings = CacheSettings(1.0, 8, 400)
    write_cache(target, text, settings, folder=tmp_path / "one", key=KEY, progress=silent)
    for rank in (0, 1, 0):
        more = {"rank": rank, "world": 2}
        try:
            write_cache(target, text, settings, folder=tmp_path / "two", key=KEY, progress=silent, **more)
        except DataError:  # the first has nothing to gather until the second has written
            continue
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    cache = TeacherCache.open(tmp_path / "one", {"drawn": 400})
    ids, log_p, tail = cache.rows(range(11))
    assert ids.shape == log_p.shape == (len(tail), 408) and cache.drawn == 400
    p = torch.cat([predictions(target, text, row, 1.0) for row in range(11)])
    assert bool(((log_p - p.gather(1, ids)).abs() <= p.gather(1, ids).abs() * 2**-11 + 1e-6).all())
    others = p.exp().scatter(1, ids[:, :8], 0.0)
    share = others / others.sum(-1, keepdim=True)
    counts = torch.zeros_like(share).scatter_add_(1, ids[:, 8:], torch.ones(ids[:, 8:].shape, dtype=share.dtype))
    assert bool((counts[others == 0] == 0).all())
    assert float((counts / 400 - share).abs().max()) < 2.01 / 400  # one from each 400th part of the mass
    q = torch.softmax(torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64), -1)
    true = torch.minimum(p.exp(), q).sum(-1).mean()
    shared = torch.minimum(p.exp(), q).gather(1, ids[:, :8]).sum(-1)
    ratio = (q.gather(1, ids[:, 8:]) / p.exp().gather(1, ids[:, 8:])).clamp(max=1).mean(-1)
    assert abs(float((shared + tail * ratio).mean() - true)) < cache.facts["alpha_bound"]
    assert cache.facts["alpha_bound"] < 0.1 * cache.facts["mean_tail"]
    assert cache.alpha_bound(range(11)) == pytest.approx(cache.facts["alpha_bound"])
    few = [cache.alpha_bound([row]) for row in range(11)]  # a mean of fewer positions errs by more
    assert sum(few) / 11 > 1.5 * cache.facts["alpha_bound"]
