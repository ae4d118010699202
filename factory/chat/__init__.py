"""Talking with a target in a terminal while a drafter drafts for it, every token shown by where it came from.

    line -> Conversation -> prompt ids -> Session -> rounds -> TextStream -> Screen

`Session` writes answers and knows no terminal; `Screen` draws and knows no model; `talk` reads lines,
and `commands` what begins with a slash. Drafting never changes what the target says: greedy answers
are its own token by token (up to ties of rounding), sampled ones equal in law.
"""
