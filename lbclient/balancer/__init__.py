"""Balancer, and the drivers that carry calls out: on threads, on event loops, in the background.

The drivers for threads and for event loops consist of the same lines, except for `async` and
`await`. A property test runs the same script with both drivers and in virtual time, and compares
every decision. If a call may be hedged, the steps of the call and the steps of the hedge run
concurrently, and the same lines carry out both.
"""
