"""The table of moves: what each way of shrinking the shipped target makes of it, and what each stage took.

    for recipe in docs/benchmarks/moves/*.yaml; do factory build "$recipe" --out artifacts/moves; done
    factory eval artifacts/moves --plan docs/benchmarks/moves_plan.yaml
    python docs/benchmarks/moves.py artifacts/moves        # writes docs/benchmarks/moves-cpu.json, prints the tables
    python docs/benchmarks/moves.py docs/benchmarks/moves-cpu.json        # prints them again from that file alone

A folder is read for results.json and for every artifact's manifest and stages; `--to FILE` names another JSON.
"""

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

from arguments import print_run, read_run, writable

from factory.artifact import list_artifacts

KEPT = Path(__file__).with_name("moves-cpu.json")
ORDER = (  # of the rows, by how an artifact's name begins
    *("depth--", "first--", "layers4--", "ffn-half", "heads-half", "gptq--"),
    *("depth2-ffn", "depth4-ffn", "depth2-gptq"),
)
MIB = 1 << 20


def collect(folder: Path) -> dict[str, Any]:
    """Everything that the tables need, from results.json and the artifacts beside it."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    made = {artifact.name: artifact for artifact in list_artifacts(folder)}
    untrained = {artifact.manifest["digest"]: artifact.name for artifact in made.values() if artifact.manifest["raw"]}
    moves, stages, seen = [], [], set()
    for name in sorted((one for one in made if not made[one].manifest["raw"]), key=lambda one: _place(made[one])):
        manifest = made[name].manifest
        records = [json.loads(path.read_text()) for path in _records(made[name].folder)]
        kinds = [record["stage"]["kind"] for record in records]
        training = kinds.index("distill") if "distill" in kinds else None
        raw = untrained.get(manifest["chain"][training - 1]) if training else None
        forecast = (manifest.get("forecast") or {"steps": []})["steps"][-len(records) :]
        for place, (record, digest) in enumerate(zip(records, manifest["chain"], strict=True)):
            if digest not in seen:  # what two chains share was done once
                seen.add(digest)
                stages.append(_stage(_words(records[: place + 1]), record, forecast[place] if forecast else {}))
        distilled = records[training]["facts"] if training is not None else {}
        rounded = records[-1]["facts"] if kinds[-1] == "gptq" else {}
        moves.append(
            {
                "artifact": name,
                "move": _words(records),
                "parameters": manifest["parameters"],
                "bytes_on_disk": manifest["bytes_on_disk"],
                "steps": distilled.get("steps"),
                "lr": records[training]["stage"]["lr"] if training is not None else None,
                "overlap_before": (distilled.get("held_out_before") or {}).get("overlap"),
                "overlap_after": (distilled.get("held_out_after") or {}).get("overlap"),
                "overlap_rounded": (rounded.get("divergence") or {}).get("overlap"),
                "kernel": rounded.get("kernel"),
                "only_saves_size": rounded.get("only_saves_size"),
                "raw": _measured(results, raw) if raw else [],
                "at": _measured(results, name),
            }
        )
    lookup = _measured(results, None)
    kept = ("hardware", "versions", "plan", "git", "target")
    return {
        **{key: results[key] for key in kept},
        "profile": results["profile"]["words"],
        "verdict": results["verdict"]["reason"],
        "target_tokens_per_s": [
            {"temperature": row["temperature"], "tokens_per_s": row["tokens_per_s"]}
            for row in results["rows"]
            if row["drafter"] is None and row["prompt_set"] == "choose"
        ],
        "moves": moves,
        "prompt_lookup": lookup,
        "stages": stages,
    }


def _place(artifact: Any) -> tuple[int, int]:
    at = [place for place, prefix in enumerate(ORDER) if artifact.name.startswith(prefix)]
    return (at[0] if at else len(ORDER), artifact.manifest["parameters"])


def _records(folder: Path) -> list[Path]:
    return sorted((folder / "stages").glob("*.json"), key=lambda path: int(path.name.split("-")[0]))


def _words(records: list[dict[str, Any]]) -> str:
    """What was done, training left out: the same short distillation is in every row but GPTQ's own."""
    said = []
    for stage in (record["stage"] for record in records):
        if stage["kind"] == "drop_layers":
            keep = stage["keep"]
            whole = isinstance(keep, list) and keep == list(range(len(keep)))
            how = "the first of them" if whole else "named" if isinstance(keep, list) else stage["score"]
            said.append(f"{len(keep) if isinstance(keep, list) else keep} layers, {how}")
        elif stage["kind"] == "prune_width":
            widths = (("keep_ffn", "FFN"), ("keep_heads", "heads"))
            parts = [f"{stage[key]} of {what}" for key, what in widths if stage[key]]
            said.append(f"{' and '.join(parts)}, by {stage['score']}")
        elif stage["kind"] == "gptq":
            said.append(f"GPTQ {stage['bits']} bits")
    return " + ".join(said)


def _stage(move: str, record: dict[str, Any], forecast: dict[str, Any]) -> dict[str, Any]:
    facts = record["facts"]
    return {
        "move": move,
        "stage": record["stage"]["kind"],
        "seconds": facts.get("seconds"),
        "peak_memory_bytes": facts.get("peak_memory_bytes"),
        "was_held_bytes": facts.get("was_held_bytes"),
        "forecast_seconds": forecast.get("seconds"),
        "forecast_peak_memory_bytes": forecast.get("peak_memory_bytes"),
    }


def _measured(results: dict[str, Any], artifact: str | None) -> list[dict[str, Any]]:
    """By k, both temperatures pooled, on the prompts to choose by; None is prompt lookup.

    c is the mean over the temperatures, each with its own target step.
    """
    found = []
    for one in results["candidates"]:
        if one["artifact"] != artifact or one["drafter"] is None or one["prompt_set"] != "choose":
            continue
        rows = [
            row
            for row in results["rows"]
            if (row["artifact"], row["drafter"], row["k"], row["prompt_set"])
            == (artifact, one["drafter"], one["k"], "choose")
        ]
        keys = ("k", "speedup", "speedup_low", "speedup_high", "forecast_speedup", "alpha", "round_tokens")
        kept = {key: one[key] for key in (*keys, "round_cost", "draft_cost", "cost_ratio", "matches_target", "prompts")}
        for key in ("c", "forecast_c"):
            values = [row[key] for row in rows if row[key] is not None]
            kept[key] = mean(values) if values else None
        found.append(kept)
    return found


def number(value: float | None, digits: int = 2) -> str:
    """A figure, or nothing where it does not apply."""
    return "" if value is None else f"{value:.{digits}f}"


def arrow(before: float | None, after: float | None) -> str:
    """Before and after training, or the one figure that there is."""
    return f"{number(before)} → {number(after)}" if before is not None else number(after)


def best(at: list[dict[str, Any]]) -> dict[str, Any]:
    """The k with the best lower bound, as the eval itself chooses."""
    return max(at, key=lambda one: (one["speedup_low"] or 0.0, one["speedup"]))


def interval(one: dict[str, Any]) -> str:
    """The ratio and its interval."""
    low, high = one["speedup_low"], one["speedup_high"]
    said = f"{one['speedup']:.2f}x" + ("" if low is None else f" ({low:.2f} to {high:.2f})")
    return said if one["matches_target"] else f"{said}, OUTPUT DIFFERS"


def size(value: int | None) -> str:
    """Bytes in MB of 2^20."""
    return "" if value is None else f"{value / MIB:,.0f}"


def show(kept: dict[str, Any]) -> None:
    """Both tables and the line of hardware."""
    plan, hardware = kept["plan"], kept["hardware"]
    compared = plan["raw_ks"][0]
    print(
        f"| move | parameters, M | MB on disk | c in bytes | c in time, forecast / measured | alpha at k = {compared} "
        "| held-out overlap | speedup at the best k, 95 % interval | k | forecast |"
    )
    print("| --- " * 10 + "|")
    for move in kept["moves"]:
        if not move["at"]:
            continue
        chosen = best(move["at"])
        after = next((one for one in move["at"] if one["k"] == compared), chosen)
        before = next((one["alpha"] for one in move["raw"] if one["k"] == compared), None)
        overlap = arrow(move["overlap_before"], move["overlap_after"])
        if move["overlap_rounded"] is not None:
            overlap += f"{'; ' if overlap else ''}rounded {number(move['overlap_rounded'])}"
        times = f"{number(chosen['forecast_c'])} / {number(chosen['c'])}"
        print(
            f"| {move['move']} | {move['parameters'] / 1e6:.2f} | {move['bytes_on_disk'] / MIB:.1f} "
            f"| {number(chosen['cost_ratio'], 3)} | {times} | {arrow(before, after['alpha'])} | {overlap} "
            f"| {interval(chosen)} | {chosen['k']} | {number(chosen['forecast_speedup'])} |"
        )
    if kept["prompt_lookup"]:
        free = best(kept["prompt_lookup"])
        print(f"| prompt lookup | 0 | 0 |  |  | {number(free['alpha'])} |  | {interval(free)} | {free['k']} |  |")
    trained = sorted({(move["steps"], move["lr"]) for move in kept["moves"] if move["steps"]})
    said = " or ".join(f"{steps} steps at lr {lr:g}" for steps, lr in trained)
    print(
        f"\nEvery row but GPTQ alone: the same distillation, {said}. alpha and overlap: untrained → trained. "
        "Held-out overlap is with the target, measured before any rounding; *rounded* is the overlap of the model in 4 "
        "or 3 bits with the one it was rounded from (of GPTQ alone: the target)."
    )
    print("\n| after | stage | s | forecast s | peak MB of the process | held before, MB | forecast MB, no libraries |")
    print("| --- " * 7 + "|")
    for stage in kept["stages"]:
        memory = [size(stage[key]) for key in ("peak_memory_bytes", "was_held_bytes", "forecast_peak_memory_bytes")]
        print(
            f"| {stage['move']} | {stage['stage']} | {number(stage['seconds'], 1)} "
            f"| {number(stage['forecast_seconds'], 1)} | {' | '.join(memory)} |"
        )
    device = hardware.get("gpu") or f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['threads']} threads"
    prompts = kept["moves"][0]["at"][0]["prompts"] if kept["moves"][0]["at"] else plan["prompts"]
    rate = ", ".join(f"{one['tokens_per_s']:.0f} at T = {one['temperature']:g}" for one in kept["target_tokens_per_s"])
    print(
        f"\n{device}; {kept['target']['dtype']}, reader {kept['target']['reader']}, batch 1; torch "
        f"{kept['versions']['torch']}, transformers {kept['versions']['transformers']}; suite "
        f"{', '.join(plan['suites'])}, {prompts} prompts, {plan['max_new_tokens']} new tokens, {plan['repeats']} "
        f"repeats, greedy and temperature 1 pooled. The target alone writes {rate} tokens/s."
    )
    slow = sorted({f"{move['move']}: {move['kernel']}" for move in kept["moves"] if move["only_saves_size"]})
    if slow:
        print(f"Unpacking each whole matrix before every product, so that bits bring no speed: {'; '.join(slow)}.")
    print(f"Forecasts from sizes alone, for {kept['profile']}.")


def main() -> None:
    """Collect where a folder is given, then print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="artifacts/moves, or the JSON that was made of it")
    parser.add_argument("--to", type=writable, default=KEPT, help="where the JSON goes")
    arguments = parser.parse_args()
    if arguments.source.is_dir():
        kept = collect(arguments.source)
        arguments.to.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    else:
        kept = read_run(parser, arguments.source)
    print_run(parser, show, kept)


if __name__ == "__main__":
    main()
