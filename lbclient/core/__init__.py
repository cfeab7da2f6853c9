"""Decisions: which instance to pick, what an outcome changes, whether to try again. No I/O.

The caller passes in the time and the random numbers. `Call` yields what is to be done, and a driver
does it: on threads, on event loops, or in virtual time.
"""
