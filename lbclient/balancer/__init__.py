"""Balancer, and the drivers that carry calls out: on threads, on event loops, and by callbacks.

The code of the driver for threads and of the driver for event loops is the same, except for `async`
and `await`. A property test runs the same calls with both drivers and in virtual time, and compares
every decision. If a call may be hedged, its steps and the steps of the hedge run concurrently, and
the same code carries out both.
"""
