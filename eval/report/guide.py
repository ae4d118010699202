"""How to read the report: every figure by its heading, what it is and what it leaves out."""

from __future__ import annotations

GUIDE: dict[str, str] = {
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
