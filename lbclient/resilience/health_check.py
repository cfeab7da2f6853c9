"""HealthCheck: how instances are checked, how often, and how the results change their health."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field

from lbclient._internal import validation
from lbclient.endpoint.breaker import Breaker
from lbclient.endpoint.endpoint import Endpoint
from lbclient.endpoint.instance import Instance

__all__ = ["HealthCheck", "HealthTally"]

_PATH = re.compile(r"/[!\"$-~]*")
_VALUE = re.compile(r"[!-~]([\t -~]*[!-~])?|")


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """Active health checks, like HAProxy's `rise` and `fall` and the target groups of AWS.

    Each instance is checked about every `interval` seconds, in the background, on a connection of
    its own. An instance that fails `down` checks in a row is out of rotation. It returns when it
    passes `up` checks in a row. A new instance is treated as healthy until its checks fail. If all
    instances are unhealthy, the checks are ignored: a check with a wrong path must not make the
    whole service unavailable.

    - `path`: the path of a GET request. The base path of the service's URL is not put before this
      path, but the base path of an instance (`Instance.path`) is. With None, a check only opens a
      TCP connection.
    - `interval`: seconds from one round of checks to the next, plus or minus a tenth. The first
      round begins at a random time in the first interval.
    - `timeout`: seconds for one check, from connecting to the end of the response body (of which at
      most 64 KiB are read).
    - `up`, `down`: the number of checks in a row that change the health of an instance.
    - `statuses`: the statuses that pass. Redirects are not followed.
    - `headers`: headers that are sent with each check, in addition to the client's headers. Headers
      of an instance replace headers with the same name.
    - `check`: a function `instance -> bool` that checks an instance. lbclient then sends no request
      of its own. It runs on a background thread and may block; `lbclient.time_left()` returns the
      time that is left of `timeout`. It should connect to `instance.address`, as
      `HealthCheck(path=None)` does, and not to a name. Any result except True is a failed check,
      and so is any exception. A check of an instance begins only after the previous check of the
      same instance has returned.
    - `grpc`: the name of a gRPC service, for channels of `lbclient.grpc`. A check asks each
      instance for the health of this service, by the protocol `grpc.health.v1`. An empty text
      stands for the whole server.

    Raises ValueError or TypeError, naming the argument, for a value that cannot be used.
    """

    path: str | None = field(default="/", repr=False)  # query and headers may be secret
    _: KW_ONLY
    interval: float = 10.0
    timeout: float = 1.0
    up: int = 2
    down: int = 3
    statuses: Collection[int] = range(200, 400)
    headers: Mapping[str, str] | Sequence[tuple[str, str]] | None = field(default=None, repr=False)
    check: Callable[[Instance], bool] | None = None
    grpc: str | None = None

    def __post_init__(self) -> None:
        put = object.__setattr__
        if self.grpc is not None:
            if not isinstance(self.grpc, str):
                raise TypeError(f"grpc must be the name of a service, not {self.grpc!r}")
            if self.path not in ("/", None) or self.check is not None or self.headers:
                raise ValueError("grpc excludes path, headers and check; pass one of them")
            put(self, "path", None)
        put(self, "path", _path(self.path, self.check))
        validation.seconds("interval", self.interval)
        validation.seconds("timeout", self.timeout)
        if self.timeout > self.interval:
            raise ValueError(
                f"timeout ({self.timeout:g} s) must not be above interval ({self.interval:g} s)"
            )
        validation.count("up", self.up)
        validation.count("down", self.down)
        put(self, "statuses", _statuses(self.statuses))
        put(self, "headers", _headers(self.headers))
        if self.path is None and self.headers:
            raise ValueError("headers are sent only with a path")


def _path(path: object, check: object) -> str | None:
    if check is not None:
        validation.function("check", check)
        if inspect.iscoroutinefunction(check):
            raise TypeError(
                "check must be a plain function (it may block), not a coroutine function"
            )
        if path not in ("/", None):
            raise ValueError("path and check exclude each other; pass one of them")
        return None
    if path is None:
        return None
    if not isinstance(path, str):
        raise TypeError(f"path must be text such as '/healthz', or None, not {path!r}")
    if not _PATH.fullmatch(path):
        shown = path.partition("?")[0]
        raise ValueError(
            "path must begin with '/' and hold printable ASCII without spaces or '#' "
            f"(percent-encode other characters), not {shown!r}"
        )
    return path


def _statuses(statuses: object) -> Collection[int]:
    given = validation.several("statuses", statuses, "HTTP statuses such as 200")
    if not given:
        raise ValueError("statuses must contain at least one HTTP status, or no check could pass")
    found = frozenset(validation.count("statuses (each of them)", one, least=100) for one in given)
    if max(found) > 599:
        raise ValueError(f"statuses must contain HTTP statuses from 100 to 599, not {max(found)}")
    return statuses if isinstance(statuses, range) else found


def _headers(headers: object) -> tuple[tuple[str, str], ...]:
    """Make an immutable tuple of the headers. Errors show no value, since it may be a secret."""
    if headers is None:
        return ()
    items = headers.items() if isinstance(headers, Mapping) else headers
    pairs = validation.several("headers", items, "pairs of a name and a value")
    return tuple(_pair(pair) for pair in pairs)


def _pair(pair: object) -> tuple[str, str]:
    match pair:
        case (str(name), str(value)):
            if not validation.token(name):
                raise ValueError(f"headers must have HTTP header names, not {name!r}")
            if not _VALUE.fullmatch(value):
                raise ValueError(f"headers: the value of {name} must be printable ASCII")
            return name, value
        case _:
            raise TypeError("headers must contain names and values that are text")


class HealthTally:
    """Counts consecutive checks of an endpoint with the same result.

    A tally belongs to one breaker of the endpoint: if the endpoint gets a new breaker, it is
    another machine.
    """

    __slots__ = ("_good", "_run", "breaker", "endpoint")

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint: Endpoint = endpoint
        self.breaker: Breaker = endpoint.breaker
        self._good = True
        self._run = 0

    @property
    def stale(self) -> bool:
        """True if the endpoint has left or has another breaker now. Then the checks that were
        counted were checks of another machine."""
        return self.endpoint.gone or self.endpoint.breaker is not self.breaker

    def count(self, *, good: bool, policy: HealthCheck) -> bool:
        """Count the result of one check. Returns True if `endpoint.healthy` must now change."""
        self._run = self._run + 1 if good is self._good else 1
        self._good = good
        enough = self._run >= (policy.up if good else policy.down)
        return enough and good is not self.endpoint.healthy
