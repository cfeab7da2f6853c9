"""What to begin with where nothing more is known of a service."""

from __future__ import annotations

from lbclient.breaker import BreakerPolicy
from lbclient.options import BalancerOptions
from lbclient.retry import RetryPolicy
from lbclient.rules import AdaptiveLimit

__all__ = ["RECOMMENDED"]

RECOMMENDED: BalancerOptions = {
    "strategy": "least-busy",
    "limit": AdaptiveLimit(backoff=0.5, tolerance=2.0),
    "breaker": BreakerPolicy(panic_threshold=0.5),
    "retry": RetryPolicy(attempts=5),
}
"""Options for any entry point: `Client(service, **RECOMMENDED)`. To change one of them, pass
`**(RECOMMENDED | {"retry": RetryPolicy(attempts=5, deadline=2.0)})`.

They differ from the defaults where a service that is overloaded, or partly slow, is better off, and
cost one that is well nothing: see docs/scoreboard.md and tests/test_recommended.py. Only a first
burst of more than twenty calls for each instance waits a few round trips, while its limit grows
(another `initial=` changes that, and how an overload begins).

The defaults take instances in turn, so that shares and weights are exact and every call goes out at
once; these send calls to where few are under way, and let them wait in line for what the service
can bear: as long as their deadline allows, or without one for httpx's pool timeout.
"""
