"""The lossless rule: Algorithm 1 of Leviathan et al. (arXiv 2211.17192), Algorithm 2 of Chen et al. (2302.01318)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from factory.decoding.sampling import draw


@dataclass
class Draft:
    """What a drafter proposes: row b offers tokens[b, :length[b]].

    `q` is the very tensor that the tokens were drawn from: computed again it may differ in the last
    bit, and that is a bias. None means that each token was certain (greedy and n-gram drafters).
    """

    tokens: torch.Tensor  # [B, k] int64
    length: torch.Tensor  # [B] int64
    q: torch.Tensor | None  # [B, k, V] float32

    def cut(self, most: list[int]) -> Draft:
        """The same proposal with at most `most[b]` tokens in row b."""
        length = self.length.clamp(max=torch.tensor(most, device=self.length.device))
        width = max(length.tolist(), default=0)
        return Draft(self.tokens[:, :width], length, None if self.q is None else self.q[:, :width])


def no_draft(rows: int, device: torch.device) -> Draft:
    """The proposal of nothing: the round is then a plain step."""
    return Draft(
        torch.zeros(rows, 0, dtype=torch.long, device=device), torch.zeros(rows, dtype=torch.long, device=device), None
    )


def accept(draft: Draft, p: torch.Tensor, u: torch.Tensor, race: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which guesses stand, and the token after them, so that all are distributed exactly as p.

    Guess x stands iff u * q(x) < p(x), which for u in [0, 1) has probability min(1, p(x) / q(x));
    strictly less, because u is sometimes exactly 0 and a token of probability 0 must not stand. At
    the first guess that falls, the token is drawn from max(0, p - q); where that is zero everywhere,
    p = q up to rounding and p is taken. If all stand, a bonus token is drawn from the next p.

    p [B, k+1, V] float32, u [B, k] in [0, 1), race [B, V] Exp(1). Returns tokens [B, k+1] int64, of
    which row b emits the first count[b], and count [B] int64 (the guesses that stand, plus 1).
    """
    rows, guesses = draft.tokens.shape
    if guesses == 0:
        return draw(p[:, 0], race).unsqueeze(1), torch.ones_like(draft.length)
    row = torch.arange(rows, device=p.device)
    p_of_guess = p[:, :guesses].gather(2, draft.tokens.unsqueeze(2)).squeeze(2)  # [B, k]
    if draft.q is None:
        stands = u < p_of_guess
    else:
        stands = u * draft.q.gather(2, draft.tokens.unsqueeze(2)).squeeze(2) < p_of_guess
    offered = torch.arange(guesses, device=p.device) < draft.length.unsqueeze(1)
    standing = (stands & offered).long().cumprod(dim=1).sum(dim=1)  # [B]

    p_next = p[row, standing]  # [B, V]
    fallen = standing.clamp(max=guesses - 1)  # the guess that fell; without meaning in a row where none did
    if draft.q is None:
        residual = p_next.scatter(1, draft.tokens[row, fallen].unsqueeze(1), 0.0)
    else:
        residual = (p_next - draft.q[row, fallen]).clamp(min=0.0)
    of_residual = (standing < draft.length) & (residual.sum(dim=1) > 0)
    last = draw(torch.where(of_residual.unsqueeze(1), residual, p_next), race)
    tokens = torch.cat([draft.tokens, draft.tokens[:, :1]], dim=1).scatter(1, standing.unsqueeze(1), last.unsqueeze(1))
    return tokens, standing + 1
