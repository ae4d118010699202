"""The lossless rule: Algorithm 1 of Leviathan et al. (arXiv 2211.17192), Algorithm 2 of Chen et al. (2302.01318)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from factory.decoding.sampling import Distribution, PointMasses, draw
from factory.decoding.sending import sent


@dataclass
class Draft:
    """What a drafter proposes: row b offers tokens[b, :length[b]].

    `q` is the very tensor that the tokens were drawn from: computed again it may differ in the last
    bit, and that is a bias. None means that each token was certain (greedy and n-gram drafters).

    A tree would come as one more field, `parent` [B, k]: the place of the guess that each guess follows,
    -1 for the last emitted token, where None is the chain 0 after -1, 1 after 0 and so on. Everything
    else stays: the reader masks by ancestors in place of by position, what looks back follows them too,
    and `accept` walks from the root, trying each guess's siblings in turn against what is left of p.
    """

    tokens: torch.Tensor  # [B, k] int64
    length: list[int]  # [B]
    q: torch.Tensor | None  # [B, k, V] float32

    def cut(self, most: list[int]) -> Draft:
        """The same proposal with at most `most[b]` tokens in row b."""
        if all(length <= room for length, room in zip(self.length, most, strict=True)):
            return self
        length = [min(pair) for pair in zip(self.length, most, strict=True)]
        width = max(length, default=0)
        return Draft(self.tokens[:, :width], length, None if self.q is None else self.q[:, :width])


def no_draft(rows: int, device: torch.device) -> Draft:
    """The proposal of nothing: the round is then a plain step."""
    return Draft(torch.zeros(rows, 0, dtype=torch.long, device=device), [0] * rows, None)


def accept(
    draft: Draft, p: Distribution, u: torch.Tensor | None, last: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which guesses stand, and the token after them, so that all are distributed exactly as p.

    Guess x stands iff u * q(x) < p(x), which for u in [0, 1) has probability min(1, p(x) / q(x));
    strictly less, because u is sometimes exactly 0 and a token of probability 0 must not stand. At
    the first guess that falls, the token is drawn from max(0, p - q); where that is zero everywhere,
    p = q up to rounding and p is taken. If all stand, a bonus token is drawn from the next p.

    Where p is certain of a token t, u * q(x) < p(x) says x = t, and max(0, p - q), or p in its place, has
    nothing but t: the same rule then needs no number, and every round emits p's own tokens.

    p [B, k+1, V] float32 or point masses [B, k+1]; u [B, k] and `last` [B, 1] in [0, 1), None where p is
    certain. Returns tokens [B, k+1] int64, of which row b emits the first count[b], and count [B] int64
    (the guesses that stand, plus 1).
    """
    guesses = draft.tokens.shape[1]
    if isinstance(p, PointMasses):
        return p.tokens, _standing(draft.tokens == p.tokens[:, :guesses], draft) + 1
    if u is None:
        raise ValueError("a guess can be judged without a number by point masses only")
    if guesses == 0:
        first = draw(p[:, 0], last)
        return first.unsqueeze(1), torch.ones_like(first)
    row = torch.arange(len(draft.length), device=p.device)
    p_of_guess = p[:, :guesses].gather(2, draft.tokens.unsqueeze(2)).squeeze(2)  # [B, k]
    if draft.q is None:
        stands = u < p_of_guess
    else:
        stands = u * draft.q.gather(2, draft.tokens.unsqueeze(2)).squeeze(2) < p_of_guess
    standing = _standing(stands, draft)

    p_next = p[row, standing]  # [B, V]
    fallen = standing.clamp(max=guesses - 1)  # the guess that fell; without meaning in a row where none did
    if draft.q is None:
        residual = p_next.scatter(1, draft.tokens[row, fallen].unsqueeze(1), 0.0)
    else:
        residual = (p_next - draft.q[row, fallen]).clamp(min=0.0)
    fell = standing < sent(draft.length, p.device)
    of_residual = fell & (residual.sum(dim=1) > 0)
    after = draw(torch.where(of_residual.unsqueeze(1), residual, p_next), last)
    tokens = torch.cat([draft.tokens, draft.tokens[:, :1]], dim=1).scatter(1, standing.unsqueeze(1), after.unsqueeze(1))
    return tokens, standing + 1


def _standing(stands: torch.Tensor, draft: Draft) -> torch.Tensor:
    """How many guesses stand before the first that falls or was not offered, [B, k] bool -> [B] int64."""
    guesses = stands.shape[1]
    if min(draft.length, default=guesses) < guesses:
        offered = torch.arange(guesses, device=stands.device) < sent(draft.length, stands.device)[:, None]
        stands = stands & offered
    return stands.cumprod(dim=1).sum(dim=1)
