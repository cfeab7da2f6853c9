"""Decisions: which instance to pick, the effects of an outcome, whether to try again. No I/O.

The caller passes in the time and the random numbers. `Call` yields steps, and a driver carries them
out: on threads, on event loops, or in virtual time.
"""
