"""Decisions: whom to pick, what an outcome changes, whether to try again. No I/O here.

Everything is told the time and handed the dice. `Call` yields what is to be done; threads,
event loops and virtual time do it.
"""
