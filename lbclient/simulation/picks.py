"""What must hold of each attempt at the moment when it is sent, as far as one call goes."""

from __future__ import annotations

from collections.abc import Iterator

from lbclient.call import Attempt
from lbclient.endpoint import Endpoint
from lbclient.simulation.oracle import Moment
from lbclient.simulation.reply import Reply
from lbclient.simulation.trail import Trail

__all__ = ["of_call", "of_pick"]


def of_pick(moment: Moment, trail: Trail, attempt: Attempt[Reply], now: float) -> Iterator[str]:
    """Whether it goes to one whom the rules allow. Its place is taken already."""
    one, reason, tried = attempt.endpoint, attempt.reason, trail.tried
    if one.gone:
        yield "it has left"
    elif reason == "probe":
        yield from _of_probe(moment, one, tried)
    elif reason == "resting":
        if moment.serving or moment.standing(one) != "resting":
            yield f"it is {moment.standing(one)}, {moment.serving} serve"
    elif reason == "hedge":
        if one not in moment.serving or one in tried:
            yield f"tried are {tried}, {moment.serving} serve"
    elif tried:
        yield from _of_retry(moment, one, trail, now)
    elif one not in moment.serving:
        yield f"it is {moment.standing(one)}, {moment.serving} serve"
    if moment.crowded(one):
        yield f"it is beyond its limit: {one.in_flight} in flight, learned limit {one.limit}"


def _of_probe(moment: Moment, one: Endpoint, tried: list[Endpoint]) -> Iterator[str]:
    """A broken one of the tier that serves, or of a better one, that the call has not tried."""
    if one.breaker.state != "half-open" or one in tried:
        yield f"its breaker is {one.breaker.state}, tried are {tried}"
    if moment.serving and one.instance.priority > moment.serving[0].instance.priority:
        yield f"{moment.serving} serve, of a better tier"


def _of_retry(moment: Moment, one: Endpoint, trail: Trail, now: float) -> Iterator[str]:
    """An untried one of the best tier that has any with room. No tried one before the call has
    waited for the untried ones that are full; one that is paused has refused calls, too."""
    tried = trail.tried
    for tier in moment.open:
        if one in tier and one not in tried:
            return
        if untried := moment.roomy(tier, tried):
            yield f"tried are {tried}; {untried} have room"
            return
    if one not in moment.serving:
        yield f"tried are {tried}, {moment.serving} serve"
    waited = [it for tier in moment.open for it in tier if it.paused_until <= now]
    full = [it for it in waited if it not in tried]
    if full and now < (until := trail.may_settle_at()):
        yield f"tried are {tried}; {full} are only full, and {until - now:g} s are left to wait"


def of_call(trail: Trail, attempt: Attempt[Reply], now: float) -> Iterator[str]:
    """Whether its call may send it."""
    call, before = trail.call, trail.attempts
    if attempt.expiry is not None and attempt.expiry.at < now:
        yield f"it begins {now - attempt.expiry.at:g} s past its time"
    if any(one.open and one.endpoint is attempt.endpoint for one in before):
        yield "the same call is under way there already"
    if before and trail.unsure and not call.idempotent:
        yield "a call that may not be repeated may have been carried out before"
    hedges = sum(one.reason == "hedge" for one in (*before, attempt))
    if hedges > 1 or (hedges and not call.idempotent):
        yield f"hedges: {hedges}, idempotent: {call.idempotent}"
    if len(before) + 1 - hedges > call.core.retries.policy.attempts:
        yield f"it is attempt {len(before) + 1 - hedges}"
