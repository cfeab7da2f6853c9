"""Classifiers: they say what a finished attempt means for the breaker, the load and retries.

A classifier is a function of the result, or of the exception, of one attempt. Users pass their
classifier as `judge=`. The default classifier in this module knows only the network errors of the
operating system. The HTTP binding has a classifier of its own.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from lbclient._internal import validation
from lbclient._internal.ip_addresses import NO_ROUTE, has_route

if TYPE_CHECKING:
    from lbclient.endpoint.instance import Instance

__all__ = [
    "CLIENT_ERROR",
    "FAULT",
    "FAULT_NAME",
    "FINE",
    "NEVER_SENT",
    "NO_LOCAL_PORT",
    "Classifier",
    "Verdict",
    "answered",
    "classify_network_error",
    "fault_name",
    "lacked_port",
    "local_origin",
    "more_telling",
]


_AGAIN = ("always", "idempotent", "never")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The meaning of one attempt.

    - `fault`: the instance is to blame. Its breaker counts the fault, and its load is raised for a
      while.
    - `again`: `"never"`: the call is not retried. `"idempotent"`: the call may have been carried
      out, so it is retried only if it may be repeated. `"always"`: the call was certainly not
      carried out, so any call is retried, the first time without a delay if another instance is
      known.
    - `rest`: seconds for which this instance asked for a back-off (`Retry-After`).
    - `backoff`: there is a delay before the next attempt, even if nothing was sent.
    - `rejected`: the instance answered that it does not serve this call now (HTTP's 429). Set
      `rejected` for a result that must be retried but is not a fault and has no `rest`.
    - `unsent`: the result says that the instance did not read the call (408 on a connection that
      was used before).
    - `unreachable`: this host has no route to the instance, or is not allowed to use the route. Set
      `unreachable` only for an exception. The balancer then sets `fault` itself: True if other
      instances can be reached, False if none can.
    - `client_error`: the instance answered that the request is wrong (HTTP's 4xx). The time of this
      answer is not recorded as latency of the instance. An instance that gives such answers far
      more often than the other instances gets less load.

    A good result is never retried. For a result (not an exception), `again` is used only if
    `fault`, `rest`, `rejected` or `unsent` says that the result is not good.

    If an attempt was never sent, another attempt is made even if the retry budget is empty. An
    attempt is treated as never sent in two cases: after a result with `unsent`, and after an
    exception with `again="always"` (if neither `rest` nor `rejected` says that the instance
    answered).

    An exception without fault is neutral: it is recorded neither as a success nor as a fault of the
    instance.
    """

    fault: bool
    again: Literal["never", "idempotent", "always"] = "never"
    rest: float = 0.0
    backoff: bool = False
    rejected: bool = False
    unsent: bool = False
    unreachable: bool = False
    client_error: bool = field(default=False, compare=False)
    good: bool = field(init=False, repr=False, compare=False)
    """True for an answer that is not a fault and is not to be retried."""
    clean: bool = field(init=False, repr=False, compare=False)
    """True for a good answer without any other information: no back-off, no client error."""

    def of_result(self) -> Verdict:
        """Return this verdict as it applies to a result (not to an exception). A result is not
        retried because of `again` alone."""
        bad = self.fault or self.rest or self.rejected or self.unsent
        return self if bad or self.again == "never" else FINE

    def never_sent(self, error: BaseException | None) -> bool:
        """True if the attempt, which ended with `error` or with a result, was never sent."""
        if error is None:
            return self.unsent
        return self.again == "always" and not self.rest and not self.rejected

    @property
    def turned_away(self) -> bool:
        """True if the instance did not serve the call: a fault, or an answer such as 429."""
        return self.fault or self.rejected or self.again == "idempotent"

    def __post_init__(self) -> None:
        validation.one_of("again", self.again, _AGAIN)
        validation.number("rest (seconds)", self.rest)
        good = not self.fault and self.again == "never"
        object.__setattr__(self, "good", good)
        object.__setattr__(self, "clean", good and not self.rest and not self.client_error)


Classifier = Callable[[object], Verdict]
"""Takes the result of an attempt, or the exception (an `Exception`) that ended it."""


FINE = Verdict(fault=False)
CLIENT_ERROR = Verdict(fault=False, client_error=True)
FAULT = Verdict(fault=True, again="idempotent")
NEVER_SENT = Verdict(fault=True, again="always")

NO_LOCAL_PORT = Verdict(fault=False, again="always")

_EXHAUSTED_HERE = Verdict(fault=False, again="always", backoff=True)
_UNREACHABLE_FROM_HERE = Verdict(fault=False, again="always", unreachable=True)
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_UNREACHABLE = NO_ROUTE | {errno.EPERM}  # from a firewall
_LOOKUP_NEEDS = 4
"""The number of file descriptors that a DNS lookup needs: glibc opens one file, and a socket for
each of at most three nameservers."""
_NEVER_SENT_ERRORS = (socket.gaierror, ConnectionRefusedError)
_ANSWERS = (ConnectionRefusedError, ConnectionResetError, ssl.SSLError)


def local_origin(error: BaseException | None) -> Verdict | None:
    """The verdict on an error that arose on this host before anything was sent, else None.

    "Local origin" is Envoy's term for such errors: resources are exhausted, or there is no route to
    the destination. The error may wrap an error of the operating system, as the errors of HTTP
    clients and event loops do.
    """
    found = [_local_origin(one) for one in _system_errors(error)]
    verdicts = [one for one in found if one is not None]
    if not verdicts or len(verdicts) < len(found):
        return None  # an address failed for another reason, which tells more
    return next((one for one in verdicts if not one.unreachable), verdicts[0])


def _local_origin(error: OSError) -> Verdict | None:
    if isinstance(error, ssl.SSLError):
        return None  # the errno of OpenSSL means something else
    if isinstance(error, socket.gaierror):
        return _EXHAUSTED_HERE if error.errno == socket.EAI_MEMORY else _starved()
    if error.errno in _EXHAUSTED:
        return _EXHAUSTED_HERE
    if error.filename is not None or isinstance(error, ConnectionError | TimeoutError):
        return None  # a file that cannot be opened is an error of the caller's code
    # A lookup that failed for lack of resources may set any errno (EAI_SYSTEM).
    return _UNREACHABLE_FROM_HERE if error.errno in _UNREACHABLE else _starved()


def _starved() -> Verdict | None:
    """Return a verdict if a lookup may have failed for lack of file descriptors.

    Such a lookup may report that the name is not known, or any other error, depending on the
    modules in nsswitch.conf (libnss-mdns does so). So the error is trusted only if a lookup would
    find enough descriptors now.
    """
    opened: list[int] = []
    try:
        while len(opened) < _LOOKUP_NEEDS:
            opened.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as reason:
        return _EXHAUSTED_HERE if reason.errno in _EXHAUSTED else None
    finally:
        for one in opened:
            os.close(one)
    return None


def lacked_port(error: BaseException, instance: Instance) -> bool:
    """True if an instance could not be reached only because this host had no free local port.

    EADDRNOTAVAIL has two possible causes: no free port, or no address of the destination's family
    on this host. Connecting a datagram socket needs the same route and source address, but no local
    TCP port, and sends nothing. So this test shows which of the two causes applies. It is not made
    for names, since a lookup would block.
    """
    if all(one.errno != errno.EADDRNOTAVAIL for one in _system_errors(error)):
        return False
    places = instance.addresses or (instance.host,)
    known = [one for one in places if validation.is_address(one)]
    return not known or any(map(has_route, known))


FAULT_NAME = "_lbclient_fault"
"""An error may have this attribute: a name of the fault that says more than the type of the
error."""


def more_telling(before: Exception | None, error: Exception) -> Exception:
    """Of two errors, each from a connection to one address, return the one that says more.

    This is the later error, unless only the earlier error was caused by the destination.
    """
    if before is None or local_origin(error) is None or local_origin(before) is not None:
        return error
    return before


def answered(error: BaseException) -> bool:
    """True for an error that only the destination can have caused, so the destination was
    reached."""
    return any(isinstance(one, _ANSWERS) for one in _system_errors(error))


def _system_errors(error: BaseException | None, seen: set[int] | None = None) -> Iterator[OSError]:
    """Yield the operating system's errors among `error` and its causes. There are several if
    addresses were tried in parallel.

    An error may be one of its own causes, since Python prevents such cycles only for `__context__`.
    """
    seen = set() if seen is None else seen
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, BaseExceptionGroup):
            for one in error.exceptions:
                yield from _system_errors(one, seen)
            return
        if isinstance(error, OSError) and (
            error.errno is not None or isinstance(error, ConnectionError | TimeoutError)
        ):
            yield error
            return
        error = error.__cause__ or error.__context__


def classify_network_error(result: object) -> Verdict:
    """Classify network errors of the operating system, even if another OSError wraps them.

    Any other result or exception is not a fault.
    """
    if not isinstance(result, OSError):
        return FINE
    if (local := local_origin(result)) is not None:
        return local
    behind = tuple(_system_errors(result))
    if behind and all(isinstance(one, _NEVER_SENT_ERRORS) for one in behind):
        return NEVER_SENT
    network = any(isinstance(one, ConnectionError | TimeoutError) for one in behind)
    return FAULT if network else FINE


def fault_name(status: int | None, error: BaseException | None) -> str:
    """The name of a fault, for logs and errors."""
    if error is not None:
        name: str = getattr(error, FAULT_NAME, type(error).__name__)
        return name
    return "a fault" if status is None else str(status)
