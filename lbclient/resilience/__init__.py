"""What bounds the harm of failures, one rule a file: a policy, and what it has seen so far.

Each is told the time and handed the dice. None is locked: its owner is.
"""
