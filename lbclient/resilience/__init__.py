"""Rules that limit the harm of failures. Each file has one policy, and its state in one balancer.

The caller passes in the time and the random number generator. The rules have no locks: the caller
holds one.
"""
