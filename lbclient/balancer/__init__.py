"""Balancer, and the drivers that carry calls out: on threads, on event loops, in the background.

The drivers for threads and for event loops have the same lines, one of them with `await`. A
property test runs both, and virtual time, through the same script and compares every decision. If a
call may be hedged, its steps and those of the hedge run concurrently, with the same lines for each.
"""
