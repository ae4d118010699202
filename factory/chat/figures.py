"""An answer's figures as text."""

from __future__ import annotations

from factory.chat.answer import Answer, Origin, Speed
from factory.chat.session import Comparison
from factory.chat.settings import AUTO

HOW = (
    "tokens/s is from an answer's first token on; what comes before it, reading the prompt, is given apart. "
    "tau: tokens a target pass. alpha: share of the examined guesses that stood."
)


def status(answer: Answer, alone: Speed | None) -> str:
    """One line, what matters most first: how fast this answer is or was written, and how fast the target is alone."""
    speed = answer.speed
    parts = [f"{speed.tok_per_s:.1f} tokens/s" if speed is not None else "no speed yet"]
    total = f"{len(answer.tokens)} token{'s' if len(answer.tokens) != 1 else ''}"
    if answer.drafter:
        parts += [f"tau {answer.tau:.2f}"] if answer.tau is not None else []
        parts += [f"alpha {answer.alpha:.2f}"] if answer.alpha is not None else []
        parts.append(_beside(speed, alone))
        counts = ", ".join(f"{answer.count(origin)} {origin.value}" for origin in Origin if answer.count(origin))
        parts += [f"{total}: {counts}", _guesses(answer)]
    else:
        parts += ["without a drafter", total]
    parts.append(f"first token after {answer.first_s:.2f} s")
    if answer.ending is not None:
        parts.append(answer.ending.value)
    return " · ".join(parts)


def _guesses(answer: Answer) -> str:
    if answer.k is not None:
        return f"k {answer.k}"
    return f"k {AUTO}, {answer.proposed:.1f} on average" if answer.proposed is not None else f"k {AUTO}"


def _beside(speed: Speed | None, alone: Speed | None) -> str:
    if alone is None:
        return "the target alone: not measured yet"
    ratio = f"{speed.tok_per_s / alone.tok_per_s:.2f}x " if speed is not None else ""
    return f"{ratio}the target alone, {alone.tok_per_s:.1f} tokens/s over {alone.tokens} when last measured"


def compared(comparison: Comparison, greedy: bool) -> list[str]:
    """Lines on one answer written both ways."""
    alone, drafted = comparison.alone, comparison.drafted
    lines = [_one("the target alone", alone), _one(f"drafted by {drafted.drafter}", drafted)]
    if alone.speed is not None and drafted.speed is not None:
        lines.append(
            f"{drafted.speed.tok_per_s / alone.speed.tok_per_s:.2f}x from the first token on, "
            f"{alone.total_s / len(alone.tokens) / (drafted.total_s / len(drafted.tokens)):.2f}x prompt included; "
            "one run each, so a rough figure: `factory eval` repeats and gives intervals"
        )
    difference = comparison.first_difference
    if not greedy:
        lines.append("above temperature 0 the two are equal in law, not token for token")
    elif difference is None:
        lines.append("the same tokens")
    else:
        lines.append(
            f"the same {difference} tokens, then another: a tie within rounding, or a fault; `factory eval` tells which"
        )
    return lines


def _one(way: str, answer: Answer) -> str:
    speed = answer.speed
    rate = f"{speed.tok_per_s:.1f} tokens/s" if speed is not None else "too short for a speed"
    tau = f", tau {answer.tau:.2f}" if answer.drafter and answer.tau is not None else ""
    took = f"{len(answer.tokens)} tokens in {answer.total_s:.2f} s, the first after {answer.first_s:.2f} s"
    return f"{way}: {rate}{tau}, {took}"
