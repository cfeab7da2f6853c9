"""Balancer, and the drivers that carry calls out: on threads, on event loops, in the background.

Both drivers are the same lines, one with `await`. A property test runs them, and virtual time,
through the same script and compares every decision. If a call may be hedged, its steps and those of
the hedge run concurrently, each by the same lines.
"""
