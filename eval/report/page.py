"""report.html: one self-contained page, no script, nothing fetched. All text is escaped here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from eval.report.plots import SERIES
from eval.report.published import HEADING, published_section
from eval.report.sections import roofline_section, speedup_section, time_section, training_section
from eval.report.style import STYLE

# results.json's name, heading, format
# A forecast stands behind the measured figure that it is of.
COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("speedup", "speedup", "{:.2f}"),
    ("speedup_low", "low", "{:.2f}"),
    ("speedup_high", "high", "{:.2f}"),
    ("modelled_speedup", "modelled", "{:.2f}"),
    ("forecast_speedup", "forecast", "{:.2f}"),
    ("ceiling_speedup", "ceiling", "{:.2f}"),
    ("speedup_decode", "without prefill", "{:.2f}"),
    ("alpha", "alpha", "{:.3f}"),
    ("overlap", "overlap", "{:.3f}"),
    ("tau", "tau", "{:.2f}"),
    ("mean_k", "mean k", "{:.2f}"),
    ("accepted_per_proposed", "accepted / proposed", "{:.2f}"),
    ("tokens_per_s", "tok/s", "{:.1f}"),
    ("baseline_tokens_per_s", "target alone tok/s", "{:.1f}"),
    ("latency_s_per_token", "latency s / token", "{:.5f}"),
    ("time_to_first_token_s", "first token s", "{:.4f}"),
    ("t_draft_s", "draft s", "{:.5f}"),
    ("forecast_t_draft_s", "forecast", "{:.5f}"),
    ("t_verify_s", "verify s", "{:.5f}"),
    ("forecast_t_verify_s", "forecast", "{:.5f}"),
    ("t_accept_s", "accept s", "{:.5f}"),
    ("t_host_s", "host s", "{:.5f}"),
    ("t_overhead_s", "both s", "{:.5f}"),
    ("divergences", "divergences", "{}"),
    ("near_ties", "near-ties", "{}"),
    ("near_tie_bound", "near-tie bound", "{:.2g}"),
    ("repetition", "repetition", "{:.1%}"),
    ("new_tokens", "new tokens", "{}"),
    ("target_passes", "target passes", "{}"),
    ("prompts", "prompts", "{}"),
    ("repeats", "repeats", "{}"),
    ("parameters", "parameters", "{:,}"),
    ("bytes_on_disk", "bytes", "{:,}"),
    ("c", "c", "{:.3f}"),
    ("forecast_c", "forecast", "{:.3f}"),
    ("cost_ratio", "c (bytes)", "{:.3f}"),
    ("peak_memory_bytes", "peak bytes", "{:,}"),
)

GUIDE = {
    "speedup": """
        Seconds per new token of the target alone / of this drafter, each a ratio of totals over all prompts and
        repeats; wall time from prompt in to last token out, both prefills included. Low and high: a 95 % bootstrap
        interval over prompts, both arms resampled together. What the same machine does tomorrow is not in it.""",
    "same output": """
        Greedy: each output equals the target's own, token by token. Every drafter and k is first compared in float64
        (targets up to 100 M parameters), where nothing is excused. In the dtype that is timed a divergence is excused
        as a near-tie when the two logits lie closer than the near-tie bound: twice the largest difference between
        1-row and (k+1)-row logits, measured in this run. Above temperature 0 outputs are equal in law, not token by
        token: such rows carry the float64 result of their drafter and k.""",
    "k": "Tokens proposed a round, or auto: chosen anew each round. Near the end of an output fewer are.",
    "alpha": """
        Accepted / (accepted + rejected) tokens, over those that were examined: those behind a rejection are not.""",
    "overlap": """
        Mean over examined positions of the sum over the vocabulary of min(p, q): the acceptance that the two
        distributions predict. From an untimed pass over the first prompts.""",
    "tau": "New tokens / target passes, the prefill being one.",
    "c": """
        One draft step / one target step: measured, as the forecast has it, and in bytes read from memory. What a step
        costs besides its bytes makes a shallow drafter's real share larger.""",
    "forecast": """
        What the device's profile says of the figure left of it (of the speedup, with its interval), from sizes alone: a
        step takes max(bytes / bandwidth, operations / peak) and what the engine adds on the host. That of the
        speedup is at the measured alpha, tau(alpha, k) / (k c + t_v(k+1)), with
        tau = (1 - alpha^(k+1)) / (1 - alpha) (arXiv 2211.17192). It knows neither sampling nor attention over the
        text so far, and takes acceptance for even.""",
    "ceiling": """
        The same where only bytes count and verification costs one step: tau / (k c + 1), on any hardware.""",
    "draft s, verify s, accept s, host s": """
        Mean seconds of a round: drafting; one target pass; sampling, acceptance and rewinding; what is left, which is
        the loop's own Python. In a batch a round is one pass over all rows that are still being written.""",
    "modelled": """
        The speedup that the measured parts make: new tokens of a round x a step of the target alone / (drafting +
        verification + accept and host), from the accepted lengths as they were. Rounds near an output's end, which are
        offered fewer guesses, and prefills are left out: it is what long outputs would gain.""",
    "latency s / token, first token s": """
        Means over outputs: seconds of its batch / its new tokens; its batch's prefills.""",
    "floor, floor reached, bound by": """
        A step streams its weights once, so it takes at least max(bytes / bandwidth, operations / peak of large
        products). Memory or arithmetic: which of the two floors is the higher. Host: more than two floors, so that
        Python, the launching of kernels, or kernels far from either roof decide. Attention over the text so far is
        not counted.""",
    "repetition": """
        Share of 4-grams in an output that it has said before. A weak model loops under greedy decoding, and loops
        flatter every drafter: discount a speedup that comes with much of it.""",
}


def page(
    results: dict[str, Any],
    plots: Sequence[tuple[str, str]],
    names: Sequence[str],
    histograms: Sequence[str],
    mapped: str,
) -> str:
    """The page. `plots` are (title, SVG), `names` the drafters in the order of their colours, `mapped` the map."""
    verdict, target = results["verdict"], results["target"]
    figures = "".join(f"<figure><h2>{escape(title)}</h2>{svg}</figure>" for title, svg in plots)
    guide = "".join(f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>" for term, meaning in GUIDE.items())
    keys = ("target", "hardware", "profile", "versions", "git", "suites", "plan", "parity")
    facts = {key: results[key] for key in keys if key in results}
    legend = "".join(
        f'<span><i style="background: var(--series-{i % SERIES})"></i>{escape(name)}</span>'
        for i, name in enumerate(names)
    )
    beside = published_section(results)
    published = f"<h2>{HEADING}</h2>\n{beside}" if beside else ""
    body = f"""{_verdict(verdict)}
<p class="soft">{escape(_setting(results))}</p>
<p class="legend">{legend}</p>
<div class="plots">{figures}</div>
<p class="soft">Each mark is one k, pooled over suites and temperatures, on the prompts to choose by;
bars are 95 % intervals.</p>
{time_section(results)}
{speedup_section(results)}
{published}
{mapped}
{roofline_section(results)}
{training_section(results, names)}
<h2>How many proposed tokens a round had accepted</h2>
<div class="small">{"".join(f"<figure>{svg}</figure>" for svg in histograms)}</div>
<h2>Every measurement</h2>
<div class="wide">{_table(results)}</div>
<h2>How to read it</h2>
<dl>{guide}</dl>
<h2>Made with</h2>
<pre>{escape(json.dumps(facts, indent=1))}</pre>
"""
    return _framed(f"Drafters for {target['model']}", body)


def map_page(found: dict[str, Any], mapped: str) -> str:
    """The page of a folder that holds a map and no evaluation."""
    facts = {key: found[key] for key in ("target", "artifact", "hardware", "versions", "git", "suites", "plan")}
    setting = f"{found['dtype']}, reader {found['reader']}, on {_where(found['hardware'])}."
    body = f"""<p class="soft">{escape(setting)} No evaluation lies beside this map.</p>
{mapped}
<h2>Made with</h2>
<pre>{escape(json.dumps(facts, indent=1))}</pre>
"""
    return _framed(f"Where drafting pays for {found['target']['model']}", body)


def _framed(title: str, body: str) -> str:
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{STYLE}</style></head><body>
<h1>{escape(title)}</h1>
{body}</body></html>
"""


def _where(hardware: dict[str, Any]) -> str:
    return str(hardware.get("gpu") or f"{hardware.get('cpu')}, {hardware.get('threads')} threads")


def _verdict(verdict: dict[str, Any]) -> str:
    if verdict["speedup"] is None:
        return f'<div class="verdict none"><b>No drafter</b>{escape(verdict["reason"])}</div>'
    name = verdict["artifact"] or "prompt lookup"
    head = f"{verdict['speedup']:.2f}x with {name}, k = {verdict['k']}"
    return f'<div class="verdict"><b>{escape(head)}</b>{escape(verdict["reason"])}</div>'


def _setting(results: dict[str, Any]) -> str:
    target, batches = results["target"], dict.fromkeys(str(row["batch"]) for row in results["rows"])
    model = f"{target['parameters']:,} parameters, {target['dtype']}, reader {target['reader']}, "
    model += f"batch {' and '.join(batches)}, on {_where(results['hardware'])}."
    if results.get("profile"):
        model += f" Forecasts are for {results['profile']['words']}."
    model += "".join(f" {note}" for note in results.get("notes", []))
    skipped = results["skipped_prompts"]
    return f"{model} {skipped} prompts did not fit the context and were skipped." if skipped else model


def _table(results: dict[str, Any]) -> str:
    verdict = results["verdict"]
    heads = "".join(f"<th>{escape(heading)}</th>" for _, heading, _ in COLUMNS)
    texts = "".join(
        f'<th class="text">{escape(h)}</th>'
        for h in ("drafter", "k", "suite", "T", "batch", "prompts to", "same output")
    )
    lines = []
    for row in results["rows"]:
        chosen = row["drafter"] is not None and all(row[key] == verdict[key] for key in ("artifact", "drafter", "k"))
        same = {True: "yes", False: '<span class="bad">NO</span>', None: "unknown"}[row["matches_target"]]
        name = row["artifact"] or {None: "target alone"}.get(row["drafter"], str(row["drafter"]).replace("_", " "))
        if row["warning"]:
            name += f" ({row['warning']})"
        first = (name, row["k"] or "", row["suite"], f"{row['temperature']:g}", row["batch"], row["prompt_set"])
        cells = "".join(f'<td class="text">{escape(str(value))}</td>' for value in first)
        cells += f'<td class="text">{same}</td>'
        cells += "".join(
            f"<td>{'' if row.get(key) is None else escape(form.format(row[key]))}</td>" for key, _, form in COLUMNS
        )
        lines.append(f'<tr class="{"chosen" if chosen else ""}">{cells}</tr>')
    return f"<table><thead><tr>{texts}{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
