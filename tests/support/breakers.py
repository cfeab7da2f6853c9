"""Permits as the core gives them out."""


def probe(breaker, now):
    """Half-open a breaker, and return the permit of its probe."""
    return given_out(breaker, breaker.probe(now))


def given_out(breaker, permit):
    """The permit, recorded by the breaker as under way if it is a probe's."""
    if permit.probe:
        breaker.probe_permit = permit
    return permit
