"""Two heads over one vocabulary: padded to different sizes they may work together, really different ones may not."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerBase

from factory.errors import UnsupportedModel


def require_one_vocabulary(
    target: PreTrainedTokenizerBase,
    drafter: PreTrainedTokenizerBase,
    *,
    target_rows: int,
    drafter_rows: int,
    name: str,
) -> None:
    """Raises UnsupportedModel unless tokens have equal ids in both, and the drafter a row for each that the target has.

    Heads may have more rows than there are tokens, and not equally many: models of one family are padded
    to different multiples (Qwen2.5: 151,936 rows up to 3B, 152,064 from 7B on). `name` is the drafter's.
    """
    theirs, ours = target.get_vocab(), drafter.get_vocab()
    sizes = f"{len(ours)} tokens and {drafter_rows} rows against the target's {len(theirs)} and {target_rows}"
    remedy = "use a drafter made from this target, or from one with the same tokenizer"
    if theirs != ours:
        different = set(theirs.items()) ^ set(ours.items())
        token = min(different, key=lambda one: (one[1], one[0]))[0]
        there, here = (str(ids.get(token, "none")) for ids in (theirs, ours))
        raise UnsupportedModel(
            f"the drafter {name} has another vocabulary than the target ({sizes}): the first token that differs is "
            f"{token!r} (its id is {there} in the target's tokenizer, {here} in the drafter's); {remedy}"
        )
    # some tokenizers add tokens that their own model has no row for: it never says them, nor need its drafter
    needed = min(max(theirs.values(), default=-1) + 1, target_rows)
    if drafter_rows < needed:
        token = min((number, token) for token, number in theirs.items() if number >= drafter_rows)[1]
        raise UnsupportedModel(
            f"the drafter {name} cannot draft for this target ({sizes}): the drafter's head is smaller than the "
            f"vocabulary, which needs {needed} rows, {token!r} (id {theirs[token]}) being the first without one; "
            f"{remedy}"
        )


def fitted(logits: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Logits over that many ids, [..., W] -> [..., V]: what is behind them is cut off, what is missing cannot occur.

    Before any softmax, so that a drafter's padding takes no share and q is 0 where it has no row.
    """
    rows = logits.shape[-1]
    if rows == vocabulary:
        return logits
    if rows < vocabulary:
        return torch.nn.functional.pad(logits, (0, vocabulary - rows), value=-torch.inf)
    return logits[..., :vocabulary]
