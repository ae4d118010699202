"""Whether outputs are the target's own: greedy token by token, sampled in law; the certificate."""
