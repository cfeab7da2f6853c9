"""`lbclient.protocol`: what the binding of a protocol uses of a balancer."""

import asyncio
import gc

import pytest

from lbclient import Balancer, Instance, protocol

ONE = Instance("one.test", 80)


@pytest.fixture
def balancer():
    with Balancer([ONE], name="orders.test", max_in_flight=1) as made:
        yield made


class Body:
    """A result that is read later."""

    def __init__(self, attempt):
        self._attempt = attempt
        attempt.hold(self)

    def close(self, error=None):
        self._attempt.finish(error)


def in_flight(balancer):
    (one,) = balancer.snapshot().instances
    return one.in_flight


def test_only_a_balancer_is_bound():
    """An argument that is not a `Balancer` is a TypeError that names the argument."""
    with pytest.raises(TypeError, match=r"balancer must be an lbclient\.Balancer, not 'orders'"):
        protocol.bind("orders")


def test_a_body_keeps_its_slot_until_it_is_closed(balancer):
    """An instance is busy from the pick to the end of the body, on threads."""
    body = protocol.run(protocol.bind(balancer).begin(), Body)
    assert in_flight(balancer) == 1
    body.close()
    assert in_flight(balancer) == 0


@pytest.mark.anyio
async def test_a_body_keeps_its_slot_until_it_is_closed_async(balancer):
    """An instance is busy from the pick to the end of the body, on event loops."""

    async def send(attempt):
        return Body(attempt)

    body = await protocol.arun(protocol.bind(balancer).begin(), send)
    assert in_flight(balancer) == 1
    body.close()
    assert in_flight(balancer) == 0


def test_a_body_that_is_dropped_gives_its_slot_back(balancer):
    """A body that is never closed gives its slot back once it is collected."""
    binding = protocol.bind(balancer)
    body = protocol.run(binding.begin(), Body)
    del body
    gc.collect()
    protocol.run(binding.begin(), Body).close()
    assert in_flight(balancer) == 0


def test_a_body_that_breaks_is_charged(balancer):
    """An error that ends the body counts against the instance, though the call has returned."""
    body = protocol.run(protocol.bind(balancer).begin(), Body)
    body.close(ConnectionResetError())
    (one,) = balancer.snapshot().instances
    assert (one.failures, one.in_flight) == (1, 0)


def test_the_steps_of_a_graceful_close(balancer):
    """Calls under way continue after `refuse_calls`, and `idle` is set after the last one."""
    binding = protocol.bind(balancer)
    body = protocol.run(binding.begin(), Body)
    binding.refuse_calls()
    with pytest.raises(RuntimeError, match=r"the balancer of orders\.test is closed"):
        binding.begin()
    assert not (idle := binding.idle()).is_set
    body.close()
    assert idle.is_set


def test_abandoned_calls_charge_nobody(balancer):
    """The error of an abandoned call charges no instance and is not retried."""
    binding = protocol.bind(balancer)
    sent = []

    def send(attempt):
        sent.append(attempt.instance)
        binding.abandon_calls()
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        protocol.run(binding.begin(protocol.CallOptions(idempotent=True)), send)
    (one,) = balancer.snapshot().instances
    assert (len(sent), one.failures) == (1, 0)


def test_users_see_no_methods_for_bindings():
    """`Balancer` has only what its users need: the part for bindings is reached by `bind`."""
    shown = {name for name in vars(Balancer) if not name.startswith("_")}
    assert shown == {
        *("acall", "acquire", "aclose", "admit", "after_fork", "arefresh", "call", "close"),
        *("eject", "instances", "refresh", "snapshot"),
    }


def test_semantics_describe_a_call(telemetry):
    """Spans have the name and the attributes that the binding's semantics give."""

    class Mine(protocol.Semantics):
        span_name = "mine"

        def request(self, resend):
            return {"mine.resend": resend}

    with Balancer([ONE], tracer_provider=telemetry.tracers) as balancer:
        call = protocol.bind(balancer).begin(protocol.NO_OPTIONS, Mine())
        asyncio.run(protocol.arun(call, _nothing))
    (span,) = [one for one in telemetry.spans if one.name == "mine"]
    assert span.attributes["mine.resend"] == 0


async def _nothing(_):
    return None
