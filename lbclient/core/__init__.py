"""The decisions of a balancer: which instance to pick, what an outcome changes, and whether to
retry. This package does no I/O.

The caller passes in the clock and the random number generator. `Call` yields steps, and a driver
carries them out: on threads, on event loops, or in virtual time.
"""
