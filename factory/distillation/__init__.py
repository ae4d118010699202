"""How a drafter is pulled toward its target: losses, whose text, the loop and what is watched in it.

Letters as in `factory.decoding`; besides: N answer positions of a batch, D hidden width, K outcomes
that a prediction is over (the vocabulary; or the teacher's top k, and behind them
all others as one or the m that were drawn for them).
"""
