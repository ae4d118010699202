"""The tables of published_moves.py, from the JSON that it wrote."""

from typing import Any

KS = (5, 10)
LENGTHS = (20, 50, 100)


def below(value: float, top: int, digits: int) -> str:
    """With as many digits as it takes not to look like `top`, which it is not."""
    while float(f"{value:.{digits}f}") >= top:
        digits += 1
    return f"{value:.{digits}f}"


def cell(one: dict[str, Any], row: dict[str, Any], k: int) -> str:
    """A mean and its interval; where nothing was rejected, k only for a bit-identical drafter, else what is sure."""
    if one["mean"] < k:
        return f"{below(one['mean'], k, 2)} ({one['low']:.2f} to {one['high']:.2f})"
    if row["bit_identical"]:
        return f"{k} (identical)"
    alpha = 1 - 3 / one["accepted"]  # the rule of three: 95 % sure after so many without one rejection
    return f"> {sum(alpha**place for place in range(1, k + 1)):.2f} (none of {one['accepted']:,} rejected)"


def show(kept: dict[str, Any]) -> None:
    """A table for each k, then what was wrong, then the hardware."""
    for k in KS:
        print(f"Mean accepted of k = {k}, greedy, 95 % interval over prompts; published: at lengths 20 / 50 / 100.\n")
        print("| drafter | published | 20 | 50 | 100 | alpha | wall clock, plain / speculative | same output |")
        print("| --- " * 8 + "|")
        for row in kept["rows"]:
            counts, ratio = row["accepted"][str(k)], row["wall_clock"][str(k)]
            lengths = [counts["by_length"].get(str(length)) for length in LENGTHS]
            cells = [cell(one, row, k) if one else "" for one in lengths]
            low = "" if ratio["low"] is None else f" ({ratio['low']:.2f} to {ratio['high']:.2f})"
            timed = f"{ratio['value']:.2f}x{low}" + (", as float32" if row["emulated"] else "")
            print(
                f"| {row['move']} | {row['published'].get(str(k), '')} | {' | '.join(cells)} | {_alpha(counts, row)} "
                f"| {timed} | {'yes' if ratio['same_output'] else 'NO'} |"
            )
        print()
    print("| drafter | MB in memory | zeros | kernel | what was wrong with the published figure |")
    print("| --- " * 5 + "|")
    for row in kept["rows"]:
        zeros = "" if row["zeros"] is None else f"{row['zeros']:.0%}"
        print(f"| {row['move']} | {row['weight_bytes'] / (1 << 20):.1f} | {zeros} | {row['kernel']} | {row['wrong']} |")
    half = next((row for row in kept["rows"] if row["move"].startswith("half")), None)
    if half is not None:
        same = (
            "are the target's own, which is stored in bfloat16: only its arithmetic is coarser"
            if half["same_weights"]
            else "are rounded"
        )
        print(
            f"\nThe half-precision drafter's weights {same}, so it truly accepts nearly all. By itself that can bring "
            "no speedup: a draft step costs a whole step of a target that is served in half precision too, as on a "
            "GPU, so k + 1 tokens cost k + 1 steps, 1x at best; of a target kept in float32, where only bytes count, "
            "half a step, so k + 1 tokens cost k / 2 + 1 steps, under 2x, which the bfloat16 model reaches alone."
        )
    settings, hardware = kept["settings"], kept["hardware"]
    print(
        f"\n{hardware['cpu']}, {hardware['cores']} cores, {hardware['threads']} threads; {kept['dtype']}, reader "
        f"eager; torch {kept['versions']['torch']}, transformers {kept['versions']['transformers']}; suite code, "
        f"{settings['prompts']} prompts of {settings['tokens']} new tokens for acceptance; wall clock on "
        f"{settings['timed_prompts']} prompts of {settings['timed_tokens']} new tokens, batch 1, {settings['repeats']} "
        "repeats, interleaved. Published figures as published: CMU 15-780, Raje, Gangireddy, Akinwande, Speculative "
        "Decoding Model Generation; read off its figures, hardware not stated."
    )


def _alpha(counts: dict[str, Any], row: dict[str, Any]) -> str:
    examined = counts["accepted"] + counts["rejected"]
    if not examined:
        return ""
    if not counts["rejected"]:
        return "1 (identical)" if row["bit_identical"] else f"> {1 - 3 / examined:.3f}"
    return below(counts["accepted"] / examined, 1, 3)
