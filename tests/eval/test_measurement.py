"""A row by hand, and what the benchmark's own instruments count."""

from pathlib import Path

import pytest
import torch

from eval.measurement import AUTO, CHOOSE, MODEL, PROMPT_LOOKUP, Arm, ArmFacts, Cell, Timed, acceptance, merged
from eval.suites import Prompt
from eval.timing.arms import Entry
from eval.timing.bench import OverlapMeter, Stopwatch, _bound, full_batches
from eval.verdict.figures import Setting, measure, modelled
from eval.verdict.rows import k_words
from factory.artifact import Artifact
from factory.decoding.decoder import Generation
from factory.decoding.rejection import Draft
from factory.forecasting.forecast import Costs, modelled_speedup

SETTING = Setting("cpu", "float32", "eager", 0)


def test_alpha_counts_examined_tokens_only() -> None:
    # Rounds: 2 of 4 accepted (one rejected, one never examined), 3 of 3 (none rejected), 0 of 4 (one rejected).
    found = acceptance([Generation([1], [5] * 9, 4, [2, 3, 0], [4, 3, 4])])
    assert (found.accepted, found.rejected, found.proposed) == (5, 2, 11)
    assert found.alpha == pytest.approx(5 / 7)
    assert found.per_proposed == pytest.approx(5 / 11)


def test_nothing_proposed_has_no_alpha() -> None:
    found = acceptance([Generation([1], [5, 6, 7], 3, [0, 0], [0, 0])])
    assert found.alpha is None and found.per_proposed is None


def test_a_row_by_hand() -> None:
    base_output = Generation([1], [7, 8, 9, 7], 4, [0, 0, 0], [0, 0, 0])
    output = Generation([1], [7, 8, 9, 7], 3, [0, 1], [2, 1])
    base = Cell(Arm(), "s", 0.0, CHOOSE, [[Timed((0,), [base_output], 4.0, 1.0, 0.0, 2.4, 0.3)]], lossless=True)
    repeats = [[Timed((0,), [output], 2.0, 1.2, 0.2, 0.4, 0.1)], [Timed((0,), [output], 3.0, 1.4, 0.6, 0.8, 0.1)]]
    cell = Cell(Arm("a", MODEL, 2), "s", 0.0, CHOOSE, repeats, overlap=0.5, lossless=True)
    costs = Costs(0.5, 0.2, lambda k: 1 + 0.1 * k)
    row = measure(cell, base, ArmFacts(10, 20, 0.1), SETTING, costs)
    assert (row.new_tokens, row.target_passes, row.tau) == (4, 3, pytest.approx(4 / 3))
    assert row.speedup == pytest.approx((4 / 4) / (5 / 8))
    assert (row.speedup_low, row.prompts, row.repeats) == (None, 1, 2)
    # Without the prefill and its token: 3 s for 3 tokens against (0.8 + 1.6) s for 6.
    assert row.speedup_decode == pytest.approx((3 / 3) / (2.4 / 6))
    assert row.tokens_per_s == pytest.approx(8 / 5) and row.baseline_tokens_per_s == pytest.approx(1)
    # Four rounds in two repeats.
    assert row.t_draft_s == pytest.approx(0.8 / 4)
    assert row.t_verify_s == pytest.approx(1.2 / 4)
    assert row.rounds == 4
    assert row.t_accept_s == pytest.approx(0.2 / 4)
    assert row.t_host_s == pytest.approx((2.4 - 0.8 - 1.2 - 0.2) / 4)
    assert row.t_overhead_s == pytest.approx((2.4 - 0.8 - 1.2) / 4)
    assert row.alpha == pytest.approx(1 / 2)
    # 0.8 s for six proposed tokens, beside a step of (4 - 1) / 3 s.
    assert row.c == pytest.approx(0.8 / 6 / 1.0)
    assert row.ceiling_speedup == pytest.approx(modelled_speedup(0.5, 2, 0.1))
    # The forecast beside it: two draft steps of 0.1 s, a pass over three tokens at 1.2 steps of 0.5 s.
    assert (row.forecast_t_draft_s, row.forecast_t_verify_s) == (pytest.approx(0.2), pytest.approx(0.6))
    assert row.forecast_c == 0.2
    assert row.forecast_speedup == pytest.approx((1 + 0.5 + 0.25) / (2 * 0.2 + 1.2))
    # One whole round a repeat, without a token accepted: two draft steps of 0.8 / 6 s, 0.3 s, and 0.1 s besides.
    assert row.modelled_speedup == pytest.approx(1 * 1.0 / (2 * 0.8 / 6 + 0.3 + 0.1))
    alone = measure(base, base, ArmFacts(100, None, None), SETTING, costs)
    assert alone.speedup == 1 and alone.tau == 1
    assert (alone.drafter, alone.k, alone.alpha, alone.t_draft_s, alone.forecast_speedup) == (None,) * 5
    assert (alone.c, alone.forecast_c, alone.forecast_t_draft_s, alone.forecast_t_verify_s) == (None, None, None, 0.5)
    unknown = measure(cell, base, ArmFacts(10, 20, 0.1), SETTING)
    assert (unknown.forecast_speedup, unknown.forecast_t_verify_s) == (None, None) and unknown.ceiling_speedup


def test_a_batch_by_hand() -> None:
    """Two rows answered together: the one ends after two rounds, the other goes on for a third by itself."""
    outputs = [Generation([1], [7] * 5, 3, [2, 0], [2, 1]), Generation([1], [8] * 4, 4, [0, 0, 0], [2, 2, 0])]
    alone = [Generation([1], [7] * 5, 5, [0] * 4, [0] * 4), Generation([1], [8] * 4, 4, [0] * 3, [0] * 3)]
    cell = Cell(Arm("a", MODEL, 2), "s", 0.0, CHOOSE, [[Timed((0, 1), outputs, 3.0, 1.0, 0.4, 1.2, 0.1)]], batch=2)
    base = Cell(Arm(), "s", 0.0, CHOOSE, [[Timed((0, 1), alone, 4.5, 0.5, 0.0, 3.6, 0.2)]], batch=2)
    (timed,) = cell.timed
    assert (timed.rounds, timed.new_tokens, timed.decoded_tokens) == (3, 9, 7)
    assert (timed.rows_read, timed.read_tokens) == (5, 5 + 3 + 4)
    assert timed.draft_steps == 2 + 2 + 0  # both rows are drafted for at once
    row = measure(cell, base, ArmFacts(10, 20, 0.1), SETTING)
    assert (row.batch, row.prompts, row.target_passes, row.rounds, row.new_tokens) == (2, 2, 7, 3, 9)
    assert row.tau == pytest.approx(9 / 7)  # of a row: how many are written together does not change it
    assert row.tokens_per_s == pytest.approx(9 / 3) and row.speedup == pytest.approx(4.5 / 3)
    assert row.speedup_low is None  # one batch is one observation
    assert row.latency_s_per_token == pytest.approx((3 / 5 + 3 / 4) / 2)
    assert row.time_to_first_token_s == 1.0
    assert (row.t_draft_s, row.t_verify_s) == (pytest.approx(0.4 / 3), pytest.approx(0.4))
    assert row.c == pytest.approx((0.4 / 4) / (4.0 / 4))
    assert [output.request for output in cell.outputs] == [0, 1]


def test_the_modelled_speedup_is_of_whole_rounds() -> None:
    """Nine tokens at k = 3: rounds that begin after 1, 5 and 6 tokens; the last has room for two guesses only."""
    output, alone = Generation([1], [7] * 9, 4, [3, 0, 2], [3, 3, 2]), Generation([1], [7] * 9, 9, [0] * 8, [0] * 8)
    base = Cell(Arm(), "s", 0.0, CHOOSE, [[Timed((0,), [alone], 9.0, 1.0, 0.0, 7.0, 0.5)]])
    timed = Timed((0,), [output], 5.0, 1.0, 1.6, 1.8, 0.3)
    cell = Cell(Arm("a", MODEL, 3), "s", 0.0, CHOOSE, [[timed]])
    # (4 + 1) / 2 tokens for three draft steps of 0.2 s, 0.6 s of verification and 0.2 s besides; a step takes 1 s
    assert modelled(cell, base) == pytest.approx(2.5 / (3 * 0.2 + 0.6 + 0.2))
    copied = Cell(Arm(None, PROMPT_LOOKUP, 3), "s", 0.0, CHOOSE, [[timed]])  # costs no more for more guesses
    assert modelled(copied, base) == pytest.approx(2.5 / (1.6 / 3 + 0.6 + 0.2))
    short = Cell(Arm("a", MODEL, 9), "s", 0.0, CHOOSE, [[timed]])
    assert modelled(short, base) is None


def test_a_near_tie_bound_is_of_the_cells_own_rounds() -> None:
    bounds = {(1, 2): 0.5, (1, 4): 0.25, (1, 8): 0.125, (1, 9): 9.0, (3, 0): 2.0, (3, 8): 1.0}
    cell = lambda k, batch: Cell(Arm("a", MODEL, k), "s", 0.0, CHOOSE, batch=batch)  # noqa: E731 - a name for it
    assert [_bound(cell(k, 1), bounds) for k in (2, 8, AUTO)] == [0.5, 0.125, 0.5]
    assert [_bound(cell(k, 3), bounds) for k in (8, AUTO)] == [1.0, 2.0]
    assert _bound(Cell(Arm(), "s", 0.0, CHOOSE, batch=3), bounds) == 2.0
    assert _bound(cell(2, 1), {}) is None


def test_k_in_words() -> None:
    assert [k_words({"k": k, "mean_k": 2.345}) for k in (None, 4, "auto")] == ["", "4", "auto (2.3)"]


def test_prompts_that_fill_no_batch_are_left_out() -> None:
    prompts = [Prompt(request, [1]) for request in range(7)]
    assert [[one.request for one in batch] for batch in full_batches(prompts, 3)] == [[0, 1, 2], [3, 4, 5]]
    assert len(full_batches(prompts, 1)) == 7 and full_batches(prompts, 8) == []


def test_c_in_bytes_is_of_models_as_they_run() -> None:
    """A 4-bit drafter of a bfloat16 target that runs in float32 reads its tables, and the target all, in 32 bits."""
    sizes = {"layers": 2, "hidden": 16, "heads": 2, "kv_heads": 2, "head_dim": 8, "ffn": 32, "ffn_matrices": 3}
    sizes |= {"fused_qkv": False, "embedding_rows": 100, "head_rows": 100, "positions": 0, "context": 64, "tied": True}
    sizes |= dict.fromkeys(("hidden_vectors", "query_vectors", "kv_vectors", "head_vectors", "ffn_vectors"), 0)
    target = {**sizes, "final_vectors": 0, "bits": 16.0, "table_bits": 16.0}
    made = {"parameters": 1, "bytes_on_disk": 1, "shape": {**target, "layers": 1, "bits": 4.0}, "target_shape": target}
    entry = Entry(Artifact(Path("a"), made), (2,))
    layer, head = 4 * 16 * 16 + 3 * 16 * 32, 100 * 16
    assert entry.facts("float32").cost_ratio == pytest.approx((4 * layer + 32 * head) / (32 * (2 * layer + head)))
    assert entry.facts("bfloat16").cost_ratio == pytest.approx((4 * layer + 16 * head) / (16 * (2 * layer + head)))


def test_an_output_of_one_token_has_no_decode_time() -> None:
    one = Generation([1], [2], 1, [], [])
    cell = Cell(Arm("a", MODEL, 2), "s", 0.0, CHOOSE, [[Timed((0,), [one], 1.0, 1.0, 0.0, 0.0, 0.0)]], lossless=True)
    row = measure(cell, cell, ArmFacts(1, 1, 0.1), SETTING)
    assert (row.speedup, row.speedup_decode, row.t_verify_s, row.repetition) == (1.0, None, None, None)


def test_overlap_by_hand() -> None:
    p = torch.tensor([[[0.5, 0.5, 0.0], [0.1, 0.2, 0.7], [1.0, 0.0, 0.0]]])
    q = torch.tensor([[[0.2, 0.3, 0.5], [0.0, 1.0, 0.0]]])
    draft = Draft(torch.tensor([[1, 1]]), torch.tensor([2]), q)
    meter = OverlapMeter(frozenset())
    assert meter.overlap is None
    meter(draft, p, torch.tensor([1]))  # the first guess fell: .2 + .3, the second was not examined
    assert meter.overlap == pytest.approx(0.5)
    meter(draft, p, torch.tensor([3]))  # both stood: .5 and .2
    assert meter.overlap == pytest.approx((0.5 + 0.5 + 0.2) / 3)
    sure = Draft(draft.tokens, draft.length, None)
    meter(sure, p, torch.tensor([2]))  # point masses on token 1: .5 and .2
    assert meter.overlap == pytest.approx((1.2 + 0.7) / 5)


def test_overlap_ends_at_an_accepted_eos() -> None:
    p = torch.full((1, 4, 3), 1 / 3)
    meter = OverlapMeter(frozenset({2}))
    meter(Draft(torch.tensor([[0, 2, 1]]), torch.tensor([3]), torch.eye(3)[None, [0, 2, 1]]), p, torch.tensor([4]))
    assert meter._positions == 2


def test_a_stopwatch_adds_up_by_name() -> None:
    watch = Stopwatch("cpu")
    for what in ("draft", "verify", "draft"):
        before = watch.seconds[what]
        with watch.span(what):
            sum(range(1000))
        assert watch.seconds[what] > before
    assert set(watch.seconds) == {"draft", "verify"}


def test_shares_of_a_block_become_one_in_the_order_of_the_batches() -> None:
    """Five batches dealt to three processes, twice: the first two have two each, and the third has one."""

    def timed(request: int, repeat: int) -> Timed:
        return Timed((request,), [Generation([1], [request, repeat], 1, [0], [0])], 10.0 * repeat + request, 0, 0, 0, 0)

    arms = [Arm(), Arm("a", MODEL, 2)]
    shares = [
        [
            Cell(arm, "s", 0.0, CHOOSE, [[timed(one, repeat) for one in range(rank, 5, 3)] for repeat in (0, 1)])
            for arm in arms
        ]
        for rank in range(3)
    ]
    shares[0][1].overlap, shares[1][1].overlap = 0.25, 0.75
    shares[1][1].peak_memory_bytes, shares[2][1].peak_memory_bytes = 7, 5
    alone, drafted = merged(shares)
    assert [cell.arm for cell in (alone, drafted)] == arms
    for cell in (alone, drafted):
        assert cell.runs == [[timed(one, repeat) for one in range(5)] for repeat in (0, 1)]
    assert (drafted.overlap, drafted.peak_memory_bytes) == (0.25, 7)
    assert alone.peak_memory_bytes is None
    assert merged(shares[:1]) == shares[0]
