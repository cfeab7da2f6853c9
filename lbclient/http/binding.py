"""What the sync and the async transport share: all but the sending."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

import httpx

from lbclient import checks, forking
from lbclient.balancer import Balancer
from lbclient.call import Call
from lbclient.endpoint import Endpoint
from lbclient.http.answer import tell
from lbclient.http.judge import HttpJudge
from lbclient.http.options import (
    TransportOptions,
    WireArguments,
    WireOptions,
    part,
    refuse_bypass,
    wire_options,
)
from lbclient.http.origin import Origin
from lbclient.http.request import UNSTREAMED, Place, terms_of
from lbclient.http.semantics import HttpSemantics, Labels
from lbclient.instance import Instance
from lbclient.options import BalancerOptions
from lbclient.retry import RetryPolicy
from lbclient.target import authority_of

__all__ = ["Binding", "closed_on_error"]

W = TypeVar("W")
_TLS_NAMES = ("instance", "service")


class Binding(Generic[W]):
    """HTTP over one balancer: what a request asks, whom it names, and a wire for each instance.

    `make` makes the wire to one instance.
    """

    def __init__(
        self,
        service: object,
        options: Mapping[str, object],
        make: Callable[[Place, WireOptions], W],
    ) -> None:
        options = dict(options)
        refuse_bypass(options, TransportOptions.__annotations__)
        mine = part(options, BalancerOptions)
        if isinstance(limits := options.get("limits"), httpx.Limits):
            checks.limit("limits (max_connections)", limits.max_connections)
            mine.setdefault("max_in_flight_total", limits.max_connections)
        self.policy = _policy(mine.get("retry", RetryPolicy()))
        self.balancer = Balancer(service, judge=HttpJudge(self.policy.statuses), **mine)  # type: ignore[arg-type]  # checked there
        self.target = target = self.balancer.target
        self.origin: Origin | None = None
        with closed_on_error(self.balancer):
            tls_name = checks.one_of("tls_name", options.get("tls_name", "service"), _TLS_NAMES)
            self._options = wire_options(target.scheme, **part(options, WireArguments))
        self.tls_name = target.host if tls_name == "service" else None
        self._make = make
        url = httpx.URL(target.origin)
        self._labels = Labels(url)
        self._logical_host = url.netloc
        self._wires: dict[Endpoint, tuple[tuple[str, ...], W]] = {}
        self._lock = threading.Lock()
        self._pool = self.balancer.pool
        self._seen = 0
        self._leaving: list[tuple[Endpoint, W]] = []
        forking.track(self)

    def own(self, origin: str) -> None:
        """Hold requests to this origin: that is what a `Client` does, and a bare transport not."""
        self.origin = Origin(origin, self.balancer.instances)

    def call(
        self, request: httpx.Request, replayable: Callable[[], bool] | None
    ) -> Call[httpx.Response]:
        """The call that carries this request."""
        terms = terms_of(request, self.policy, replayable)
        return self.balancer.begin(terms, HttpSemantics(request, self._labels))

    def wire(self, endpoint: Endpoint) -> W:
        """The wire to an instance; a new one where its addresses are others than before."""
        known = self._wires.get(endpoint)
        if known is not None and known[0] is endpoint.instance.addresses:
            return known[1]
        return self._new_wire(endpoint)

    @property
    def untidy(self) -> bool:
        """True where there may be wires to close."""
        return self._seen != self._pool.membership or bool(self._leaving)

    def departed(self) -> Sequence[W]:
        """Wires to close: nobody uses them any more, and nobody will."""
        with self._lock:
            self._seen = self._pool.membership
            gone = [one for one in self._wires if one.gone]
            self._leaving += [(one, self._wires.pop(one)[1]) for one in gone]
            idle = [wire for one, wire in self._leaving if not one.in_flight]
            self._leaving = [pair for pair in self._leaving if pair[0].in_flight]
        return idle

    def all_wires(self) -> Sequence[W]:
        """Every wire, handed over for closing; a closed balancer makes no new one."""
        self.balancer.close()
        with self._lock:
            wires = [wire for _, wire in self._wires.values()]
            wires += [wire for _, wire in self._leaving]
            self._wires, self._leaving = {}, []
        return wires

    def reads_at_once(self, request: httpx.Request, response: httpx.Response) -> bool:
        """True where the body belongs to the attempt: an instance that dies in it can be replaced.

        Not for an answer that may be replaced by another attempt anyway.
        """
        unstreamed: bool = request.extensions.get(UNSTREAMED, False)
        return unstreamed and response.status_code not in self.policy.statuses

    def finished(self, call: Call[httpx.Response], response: httpx.Response) -> httpx.Response:
        """The response as the caller gets it."""
        tell(response, call.info())
        if self.origin is not None and response.has_redirect_location:
            self.origin.make_logical(response)
        return response

    def after_fork(self) -> None:
        """In a child: the parent's connections are the parent's."""
        self._lock = threading.Lock()
        self._wires, self._leaving = {}, []

    def _place(self, instance: Instance) -> Place:
        """How an instance is addressed: an unnamed list by each one's own Host."""
        hosts = None
        if self.origin is not None and self.target.authority is None:
            own = authority_of(instance.host, instance.port, self.target.scheme).encode("ascii")
            hosts = None if own == self._logical_host else (self._logical_host, own)
        return Place(instance, self.target.scheme, self.tls_name, hosts)

    def _new_wire(self, endpoint: Endpoint) -> W:
        with self._lock:
            known = self._wires.get(endpoint)
            addresses = endpoint.instance.addresses
            if known is not None:
                if set(known[0]) == set(addresses):
                    self._wires[endpoint] = (addresses, known[1])
                    return known[1]
                self._leaving.append((endpoint, known[1]))
            wire = self._make(self._place(endpoint.instance), self._options)
            self._wires[endpoint] = (addresses, wire)
            return wire


@contextlib.contextmanager
def closed_on_error(balancer: Balancer) -> Iterator[None]:
    """Close it if what is built around it cannot be finished."""
    try:
        yield
    except BaseException:
        balancer.close()
        raise


def _policy(policy: object) -> RetryPolicy:
    """For the table of outcomes; what is no policy, the balancer refuses."""
    return policy if isinstance(policy, RetryPolicy) else RetryPolicy(attempts=1)
