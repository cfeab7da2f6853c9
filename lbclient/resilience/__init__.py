"""Rules that limit the harm of failures, one per file: a policy, and the state of one balancer.

The caller passes in the time and the random number generator. The rules have no locks: the caller
holds one.
"""
