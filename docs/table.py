"""Print a results.json as the Markdown table that README and docs/benchmarks show.

    python docs/table.py artifacts/demo/results.json

Two parts: every (drafter, k) pooled over suites and temperatures, with its interval, as the choice
saw them and as they were measured again; then one line a row for suite and temperature. The forecast
stands beside the measurement: of the speedup at the measured alpha, of draft, verification and c.
"""

import argparse
import json
from pathlib import Path
from typing import Any


def number(value: float | None, digits: int = 2) -> str:
    """A figure, or nothing where it does not apply."""
    return "" if value is None else f"{value:.{digits}f}"


def speedup(row: dict[str, Any]) -> str:
    """The ratio and its interval."""
    low, high = row["speedup_low"], row["speedup_high"]
    interval = "" if low is None else f" ({low:.2f} to {high:.2f})"
    return f"{row['speedup']:.2f}x{interval}"


def beside(row: dict[str, Any], key: str, unit: float = 1.0) -> str:
    """A measured figure, and behind a slash its forecast; results of earlier versions have none."""
    both = (row.get(key), row.get(f"forecast_{key}"))
    return " / ".join("" if value is None else f"{unit * value:.2f}" for value in both).strip(" /")


def who(row: dict[str, Any]) -> str:
    """The drafter's name."""
    return str(row["artifact"] or {"prompt_lookup": "prompt lookup", None: "target alone"}[row["drafter"]])


def main() -> None:
    """Read and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, help="the results.json of a `factory eval`")
    path = parser.parse_args().results
    try:
        show(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        parser.error(f"{path}: {error.strerror}; name the results.json of a `factory eval`")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        parser.error(f"{path}: not the results.json that `factory eval` writes; run it again")


def show(results: dict[str, Any]) -> None:
    """Print both parts."""
    hardware, plan = results["hardware"], results["plan"]
    print(f"> {results['verdict']['reason']}\n")
    print("| drafter | k | prompts | speedup, 95 % interval | forecast | alpha | a round, in target steps |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in results["candidates"]:
        prompts = f"{row['prompts']} {'fresh' if row['prompt_set'] == 'confirm' else 'to choose by'}"
        print(
            f"| {who(row)} | {row['k']} | {prompts} | {speedup(row)} | {number(row.get('forecast_speedup'))} "
            f"| {number(row['alpha'])} | {number(row['round_cost'])} |"
        )
    print(
        "\n| drafter | k | suite | T | set | speedup | alpha | overlap | tau | tok/s | draft ms | verify ms | c "
        "| repetition | same output |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in results["rows"]:
        print(
            f"| {who(row)} | {row['k'] or ''} | {row['suite']} | {row['temperature']:g} | {row['prompt_set']} "
            f"| {speedup(row)} | {number(row['alpha'])} | {number(row['overlap'])} | {number(row['tau'])} "
            f"| {row['tokens_per_s']:.0f} | {beside(row, 't_draft_s', 1e3)} | {beside(row, 't_verify_s', 1e3)} "
            f"| {beside(row, 'c')} | {number(row['repetition'])} | {'yes' if row['matches_target'] else 'NO'} |"
        )
    device = hardware.get("gpu") or f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['threads']} threads"
    versions = results["versions"]
    batch = plan.get("batches", [1])[0]  # results of earlier versions have none
    print(
        f"\n{device}; {results['target']['dtype']}, reader {results['target']['reader']}, batch {batch}; torch "
        f"{versions['torch']}, transformers {versions['transformers']}; {plan['max_new_tokens']} new tokens, "
        f"{plan['repeats']} and {plan['confirm_repeats']} repeats."
    )
    if "profile" in results:
        print(f"Behind a slash and under forecast: from sizes alone, for {results['profile']['words']}.")


if __name__ == "__main__":
    main()
