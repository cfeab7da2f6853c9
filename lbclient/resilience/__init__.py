"""Rules that limit the harm of failures. Each file contains one policy, and the state that one
balancer needs for it.

The caller passes in the time and the random number generator. The rules have no locks: callers hold
the balancer's lock.
"""
