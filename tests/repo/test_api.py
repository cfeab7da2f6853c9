"""The public names: what users and their tests may rely on."""

import inspect

import pytest

import lbclient
import lbclient.httpx2
from tests.repo.public_api import breaks

CONTRACT = {
    "Answer", "AsyncClient", "AsyncTransport", "Balancer", "BreakerPolicy", "Client",
    "DeadlineExceeded", "DiscoveryError", "Instance", "LeastBusy", "LoadBalancingError",
    "NoInstanceAvailable", "Random", "RetryBudget", "RetryPolicy", "RoundRobin", "Transport",
    "Verdict", "Weighted", "call_info",
}  # fmt: skip


def test_the_contract_is_there():
    """Every name of the contract can be imported, and is declared."""
    assert set(lbclient.__all__) >= CONTRACT
    assert all(hasattr(lbclient, name) for name in lbclient.__all__)


def test_what_was_public_stays():
    """No recorded name, member or parameter is gone, and no new parameter is required."""
    found = breaks()
    assert not found, f"if that is meant, run `python -m tests.repo.public_api`: {found}"


@pytest.mark.parametrize("name", sorted(set(lbclient.__all__) - {"__version__", "StrategyName"}))
def test_every_public_name_has_a_docstring(name):
    """Each public name has a docstring, and so has each of its public members."""
    thing = getattr(lbclient, name)
    assert inspect.getdoc(thing)
    if not inspect.isclass(thing):
        return
    for member, value in vars(thing).items():
        if not member.startswith("_") and (
            inspect.isfunction(value) or isinstance(value, property)
        ):
            assert inspect.getdoc(value), f"{name}.{member}"


@pytest.mark.parametrize(
    "entry",
    [
        *[lbclient.Balancer, lbclient.Client, lbclient.AsyncClient],
        *[lbclient.Transport, lbclient.AsyncTransport],
        *[lbclient.httpx2.Client, lbclient.httpx2.AsyncTransport],
    ],
    ids=lambda entry: f"{entry.__module__}.{entry.__name__}",
)
def test_help_tells_every_argument(entry):
    """`help` has a line for each argument, and the signature names those and no others."""
    names = inspect.signature(entry).parameters
    lines = [line for line in inspect.getdoc(entry).splitlines() if line.startswith("- `")]
    assert sorted(line.split("`")[1] for line in lines) == sorted(names)
    assert all(one.kind != one.VAR_KEYWORD for one in names.values())
    assert [name for name in names if names[name].default is inspect.Parameter.empty] == ["service"]


def test_signature_of_a_subclass_is_its_own():
    """A class of the user's that extends a client has the signature of its own `__init__`."""

    class Orders(lbclient.Client):
        def __init__(self, token):
            super().__init__("http://orders", headers={"token": token})

    assert list(inspect.signature(Orders).parameters) == ["token"]


def test_defaults():
    """The defaults are those in the documentation."""
    retry, breaker = lbclient.RetryPolicy(), lbclient.BreakerPolicy()
    assert (retry.attempts, retry.backoff, retry.backoff_max) == (3, 0.025, 1.0)
    assert retry.methods == {"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"}
    assert retry.statuses == {429, 502, 503, 504}
    assert (retry.attempt_timeout, retry.deadline) == (None, None)
    assert (retry.unprocessed, retry.retry_after_max) == (frozenset(), 30.0)
    assert retry.budget == lbclient.RetryBudget(ratio=0.2, reserve=10.0, window=10.0)
    assert breaker == lbclient.BreakerPolicy(5, 1.0, 30.0, 1, 0.0)
