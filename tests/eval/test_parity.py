"""The audit on real tiny models, with faults planted in the reader."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from eval.parity import (
    Audit,
    Greedy,
    Reference,
    audit,
    first_divergence,
    forced_batch,
    forced_logits,
    near_tie_bounds,
    uncached_audit,
)
from factory.decoding.decoder import Generation, Limits
from factory.decoding.drafters import ModelDrafter, PromptLookup
from factory.decoding.eager import EagerReader
from factory.decoding.sampling import Sampling

Tiny = Callable[..., PreTrainedModel]
LIMITS = Limits(max_new_tokens=24, eos=frozenset({2}), context=160)
PROMPTS = [[5, 9, 17, 5, 9], [1, 0, 33], [60, 61, 62, 63, 60, 61]]


class ShiftedReader(EagerReader):
    """Planted fault: a pass of several rows over a filled cache reads its last token as another one."""

    def feed(self, tokens: torch.Tensor, count: list[int] | None = None) -> torch.Tensor:
        if tokens.shape[1] > 1:
            tokens = tokens.clone()
            tokens[:, -1] = (tokens[:, -1] + 1) % self.vocabulary
        return super().feed(tokens, count)


def swapped(output: Generation, position: int, token: int) -> Generation:
    tokens = [*output.tokens[:position], token, *output.tokens[position + 1 :]]
    return Generation(output.prompt, tokens, output.target_passes)


def test_first_divergence_sees_ends_too() -> None:
    assert first_divergence([1, 2], [1, 2]) is None
    assert first_divergence([1, 2, 3], [1, 5, 3]) == 1
    assert first_divergence([1, 2], [1, 2, 3]) == 2


def test_forced_logits_are_those_of_an_uncached_pass_however_many_rows(tiny: Tiny) -> None:
    model = tiny()
    (output,) = Greedy(EagerReader(model), LIMITS).alone(PROMPTS[:1])
    ids = torch.tensor([[*output.prompt, *output.tokens]])
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits[0, len(output.prompt) - 1 : -1]
    for rows in (1, 3, 5):
        found = forced_logits(EagerReader(model), output.prompt, output.tokens, rows)
        assert torch.allclose(found, expected, atol=1e-9, rtol=0)


def test_bounds_are_the_rounding_of_the_dtype(tiny: Tiny) -> None:
    bounds = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        reader = EagerReader(tiny(dtype=dtype))
        bounds[dtype] = near_tie_bounds(reader, Greedy(reader, LIMITS).alone(PROMPTS), [4])[4]
    assert bounds[torch.float64] < 1e-10
    assert bounds[torch.float64] < bounds[torch.float32] < 1e-2 < bounds[torch.bfloat16] or bounds[torch.bfloat16] == 0


def test_a_reader_that_misreads_blocks_excuses_nothing(tiny: Tiny) -> None:
    model = tiny(dtype=torch.float32)
    outputs = Greedy(EagerReader(model), LIMITS).alone(PROMPTS)
    assert near_tie_bounds(ShiftedReader(model), outputs, [2]) == {2: 0.0}


def test_equal_outputs_pass_and_a_wrong_token_does_not(tiny: Tiny) -> None:
    model = tiny(dtype=torch.float32)
    reader = EagerReader(model)
    outputs = Greedy(reader, LIMITS).alone(PROMPTS)
    bound = near_tie_bounds(reader, outputs, [3])[3]
    assert audit(reader, outputs, outputs, bound).passed
    logits = forced_logits(reader, outputs[0].prompt, outputs[0].tokens, 1)[6]
    changed = [swapped(outputs[0], 6, int(logits.argmin())), *outputs[1:]]
    found = audit(reader, outputs, changed, bound)
    assert (found.compared, found.divergences, found.near_ties, found.passed) == (3, 1, 0, False)
    assert found.detail[0].startswith("token 6: ")
    assert not uncached_audit(model, changed, bound).passed
    assert uncached_audit(model, outputs, bound).passed


def test_equal_logits_are_a_near_tie_in_float32_and_a_fault_in_float64(tiny: Tiny) -> None:
    for dtype, excused in ((torch.float32, True), (torch.float64, False)):
        model = tiny(dtype=dtype)
        head = torch.nn.Linear(32, 96, bias=False, dtype=dtype)
        head.weight.data = model.get_output_embeddings().weight.detach().clone()
        model.set_output_embeddings(head)  # GPT-2 ties it to the embedding: give it one of its own
        reader = EagerReader(model)
        (before,) = Greedy(reader, LIMITS).alone(PROMPTS[:1])
        place, token = next((i, t) for i, t in enumerate(before.tokens) if t < 95)
        twin = 95
        head.weight.data[twin] = head.weight.data[token]
        (reference,) = Greedy(reader, LIMITS).alone(PROMPTS[:1])
        assert reference.tokens[: place + 1] == before.tokens[: place + 1]  # the lowest index wins the tie
        bound = near_tie_bounds(reader, [reference], [4])[4] if excused else None
        found = audit(reader, [reference], [swapped(reference, place, twin)], bound)
        assert (found.divergences, found.near_ties, found.passed) == (1, int(excused), excused)


def test_an_output_that_ends_early_fails(tiny: Tiny) -> None:
    reader = EagerReader(tiny(dtype=torch.float32))
    outputs = Greedy(reader, LIMITS).alone(PROMPTS[:1])
    short = [Generation(outputs[0].prompt, outputs[0].tokens[:-1], 1)]
    assert "ends after" in audit(reader, outputs, short, 1.0).detail[0]


def test_audits_taken_together_pass_only_where_each_does() -> None:
    clean, tied, wrong = Audit(3, 0, 0, 0.5), Audit(4, 1, 1, 0.75), Audit(2, 1, 0, None, ("token 1: ...",))
    both = Audit.of([clean, tied])
    assert (both.compared, both.divergences, both.near_ties, both.bound, both.passed) == (7, 1, 1, 0.75, True)
    every = Audit.of([clean, tied, wrong])
    assert (every.passed, every.detail) == (False, ("token 1: ...",))
    assert Audit.of([Audit(3, 0, 0, None)]).bound is None
    assert not Audit.of([clean, Audit(0, 0, 0, None)]).passed
    assert not Audit.of([]).passed


def test_nothing_compared_is_not_a_pass(tiny: Tiny) -> None:
    assert not audit(EagerReader(tiny()), [], [], None).passed


def test_speculation_over_a_misreading_target_is_caught(tiny: Tiny) -> None:
    model = tiny()
    alone = Greedy(EagerReader(model), LIMITS).alone(PROMPTS)
    lookup = PromptLookup(vocabulary=96)
    twin = ModelDrafter(EagerReader(model))
    for drafter in (twin, lookup):
        assert audit(
            EagerReader(model), alone, Greedy(EagerReader(model), LIMITS).drafted(drafter, 3, PROMPTS), None
        ).passed
    wrong = Greedy(ShiftedReader(model), LIMITS).drafted(twin, 3, PROMPTS)
    assert not audit(EagerReader(model), alone, wrong, None).passed


def test_a_ragged_batch_writes_and_is_forced_as_its_rows_alone(tiny: Tiny) -> None:
    model = tiny()
    eos = frozenset(Greedy(EagerReader(model), LIMITS).alone(PROMPTS[:1])[0].tokens[5:6])  # one row ends early
    limits = Limits(max_new_tokens=24, eos=eos, context=160)
    alone = Greedy(EagerReader(model), limits).alone(PROMPTS)
    assert len({len(output.tokens) for output in alone}) > 1
    together = Greedy(EagerReader(model), limits, batch=2).alone(PROMPTS)
    assert [output.tokens for output in together] == [output.tokens for output in alone]
    for rows in (1, 4):
        found = forced_batch(EagerReader(model), alone, rows, keep=2)
        assert len(found) == 2
        for output, logits in zip(alone, found, strict=False):
            expected = forced_logits(EagerReader(model), output.prompt, output.tokens, 1)
            assert torch.allclose(logits, expected, atol=1e-9, rtol=0)


def test_the_bound_of_a_batch_covers_what_the_batch_itself_moves(tiny: Tiny) -> None:
    reader = EagerReader(tiny(dtype=torch.float32))
    outputs = Greedy(reader, LIMITS).alone(PROMPTS)
    single = [forced_logits(reader, output.prompt, output.tokens, 1) for output in outputs]
    blocks = forced_batch(reader, outputs, 1, keep=3)
    moved = max(float((a - b).abs().max()) for a, b in zip(single, blocks, strict=True))
    bounds = near_tie_bounds(reader, outputs, [2, 4], batch=3)
    assert all(2 * moved <= bound < 1e-2 for bound in bounds.values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_reference_holds_batches_to_the_target_alone(tiny: Tiny, dtype: torch.dtype) -> None:
    model = tiny(dtype=dtype)
    reference = Reference(model, EagerReader(model), PROMPTS, LIMITS, [3], batch=3)
    assert reference.itself().passed
    assert reference.against(PromptLookup(vocabulary=96), 3).passed
    wrong = Reference(model, ShiftedReader(model), PROMPTS, LIMITS, [3], batch=3)
    assert not wrong.against(ModelDrafter(EagerReader(model)), 3).passed


def test_a_near_tie_under_penalties_is_one_of_penalised_logits(tiny: Tiny) -> None:
    model = tiny()
    reader, sampling = EagerReader(model), Sampling(repetition_penalty=2.0, min_new_tokens=8)
    (output,) = Greedy(reader, LIMITS, sampling=sampling).alone(PROMPTS[:1])
    plain = audit(reader, Greedy(reader, LIMITS).alone(PROMPTS[:1]), [output], None)
    assert plain.divergences == 1  # the penalty tells
    found = {}
    for place in (3, 20):
        logits = forced_logits(reader, output.prompt, output.tokens, 1)[place].clone()
        for token in {*output.prompt, *output.tokens[:place]}:
            logits[token] = logits[token] / 2 if logits[token] > 0 else logits[token] * 2
        if place < 8:
            logits[2] = -torch.inf
        assert int(logits.argmax()) == output.tokens[place]
        second = int(logits.topk(2).indices[1])
        gap = float(logits.max() - logits[second])
        changed = [swapped(output, place, second)]
        for bound in (gap * 0.99, gap * 1.01):
            found[place, bound > gap] = audit(reader, [output], changed, bound, sampling, LIMITS.eos).near_ties
        too_early = audit(reader, [output], [swapped(output, place, 2)], 1e6, sampling, LIMITS.eos)
        assert too_early.near_ties == (place >= 8)  # a token that is forbidden is never nearly the largest
    assert found == {(3, False): 0, (3, True): 1, (20, False): 0, (20, True): 1}
