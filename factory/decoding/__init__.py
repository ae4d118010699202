"""Runs models. Knows no recipe, no artifact and no prompt suite, and reads no clock but the one handed to it.

One sampler, two notations. Leviathan et al. (arXiv 2211.17192) write p for the target, q for the
drafter and gamma for the number of guesses; Chen et al. (arXiv 2302.01318) write q for the target,
p for the drafter and K. Both accept a guess x with probability min(1, target(x) / drafter(x)), both
draw from norm(max(0, target - drafter)) at the first rejection and a bonus token from the target
when all are accepted: the same algorithm. Here, everywhere:

    p      the target's distribution, after penalties, temperature, top-k, top-p and min-p
    q      the drafter's, after the same processors: the very tensor that the guess was drawn from
    k      tokens proposed per round (gamma, K)
    alpha  accepted / (accepted + rejected), over examined tokens only
    tau    new tokens / target passes
    c      one draft step / one target step, in time
    B      rows of a batch; T positions; V vocabulary; S positions held by a cache

Sampled output equals plain sampling in law, not token for token per seed, and differs between k.
"""
