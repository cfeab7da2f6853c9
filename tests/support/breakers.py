"""Permits as the core gives them out."""


def probe(breaker, now):
    """Half-open a breaker, and give the permit of its probe out."""
    return given_out(breaker, breaker.probe(now))


def given_out(breaker, permit):
    """The permit, of which the breaker knows that it is under way where it is a probe's."""
    if permit.probe:
        breaker.probe_permit = permit
    return permit
