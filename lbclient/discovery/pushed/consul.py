"""Consul: the instances of a service, from its health API, by blocking queries.

A blocking query returns when the service has changed since the index that the query names, or after
some minutes. The rules for the index are those of Consul's documentation ("Blocking Queries").
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias
from urllib.parse import SplitResult, quote

from lbclient._internal import validation
from lbclient.discovery.entries import short, sorted_out
from lbclient.discovery.pushed.api import (
    RegistryApi,
    Reply,
    read_secret,
    registry_url,
    secret,
)
from lbclient.discovery.pushed.source import Alive, PushedSource, Update
from lbclient.discovery.service_url import host_of, shown
from lbclient.endpoint.instance import Answer, Instance, RejectedRecord
from lbclient.errors import DiscoveryError

__all__ = ["Consul", "HealthAnswers", "from_url"]

_DEFAULT = "127.0.0.1:8500"
_WAIT = 300
"""The maximum number of seconds for which a query blocks. Up to a tenth is subtracted at random, so
that clients that start at the same time do not ask at the same time. Consul adds up to a sixteenth.
"""
_SHORT_WAIT = 25
"""The same on a thread of its own, where no other request shows that the agent is alive."""
_SLOWER = 1 / 16
_MARGIN = 10.0
_SIGN = 30.0
"""Seconds between two requests that show whether the agent is alive while a query blocks."""
_FIRST = 15.0
"""The timeout in seconds of a query that does not block. Consul itself gives up after 7 s without a
leader."""
_AGAIN, _NEWS = 1.0, 0.1
"""Queries are at least this number of seconds apart: after an answer without changes, and after an
answer with changes. If a query blocked for longer, the next query follows at once."""
_AT_ONCE = 2
"""The first answers in a row, up to this number, are each followed by a query at once."""

_INDEX = re.compile("[0-9]{1,20}")
_TRUE, _FALSE = ("1", "t", "true"), ("0", "f", "false")
_BETWEEN = b'},{"Node":{'
_BLOCK = 1 << 16
_Entry: TypeAlias = Instance | RejectedRecord | None
"""An instance, an entry that cannot be used, or None for one that is not healthy."""
_POLICY = "service:read for the service, and node:read for its nodes"


class Consul(PushedSource):
    """A service in Consul, passed as `service` or as `via` of a `Registration`.

    - `service`: the name of the service in Consul.
    - `address`: the agent's HTTP API, `"127.0.0.1:8500"` or a URL. With None, the environment
      variable `CONSUL_HTTP_ADDR` is used, or else `"127.0.0.1:8500"`. `CONSUL_HTTP_SSL` and
      `CONSUL_CACERT` are honoured.
    - `tag`: only instances with this tag are used.
    - `dc`: the datacenter to ask; None means the agent's own.
    - `near`: a node, or `"_agent"`, from which Consul sorts the instances by distance. The order
      does not change how calls are distributed.
    - `passing`: with True, only instances whose checks all pass are used. With False, instances
      with the status `warning` are used too, with their weight for that status. Instances that are
      critical or in maintenance are never used.
    - `token`: the ACL token, or the path of a file with the token. With None, the environment
      variable `CONSUL_HTTP_TOKEN_FILE` or `CONSUL_HTTP_TOKEN` is used. A file is read again for
      each request.

    `Weights` of Consul become weights. The metadata of an instance are its `Meta`, and `tags`,
    `node` and `datacenter`. Raises ValueError or TypeError, naming the argument.
    """

    def __init__(
        self,
        service: str,
        address: str | None = None,
        tag: str | None = None,
        dc: str | None = None,
        near: str | None = None,
        passing: bool = True,  # noqa: FBT001, FBT002  # the order of the contract
        token: str | os.PathLike[str] | None = None,
    ) -> None:
        self.name: str = validation.host("service (its name in Consul)", service)
        self.service = service
        self.address = address
        self.tag: str | None = _word("tag", tag)
        self.dc: str | None = _word("dc", dc)
        self.near: str | None = _word("near", near)
        if not isinstance(passing, bool):
            raise TypeError(f"passing must be True or False, not {validation.shown(passing)}")
        self.passing = passing
        if isinstance(token, os.PathLike):
            self.token: str | os.PathLike[str] | None = token
        else:
            self.token = None if token is None else secret("token", token)
        if address is not None:
            _url(address)

    def __repr__(self) -> str:
        values = {
            "address": None if self.address is None else validation.bare(self.address),
            "tag": self.tag,
            "dc": self.dc,
            "near": self.near,
            "passing": None if self.passing else False,
        }
        given = [f"{key}={value!r}" for key, value in values.items() if value is not None]
        return f"Consul({', '.join([repr(self.service), *given])})"

    def session(self) -> RegistryApi:
        """Return a new session with the agent."""
        try:
            url = _url(self.address)
        except ValueError as error:
            raise DiscoveryError(str(error)) from None
        return RegistryApi(
            "Consul",
            url,
            headers=self._headers,
            ca=os.environ.get("CONSUL_CACERT") or None,
            ca_hint="set CONSUL_CACERT",
            hints={403: f"a valid token needs {_POLICY}, or service:write to register"},
        )

    async def follow(self, api: RegistryApi, update: Update, alive: Alive) -> None:
        """Report the instances whenever they change.

        A query may block for minutes. Meanwhile it does not show whether the agent is alive. So on
        an event loop, the agent is also asked for the leader of the cluster, every half minute. Its
        answer shows that it is alive. Elsewhere queries block for less than half a minute.
        """
        if not api.on_loop:
            await self._follow(api, update, alive)
            return
        signs = asyncio.create_task(_signs_of_life(api, alive, self.dc))
        try:
            await self._follow(api, update, alive)
        finally:
            signs.cancel()
            await asyncio.wait({signs})

    async def _follow(self, api: RegistryApi, update: Update, alive: Alive) -> None:
        path = f"/v1/health/service/{quote(self.service, safe='')}"
        answers = HealthAnswers(passing=self.passing)
        index = 0
        while True:
            params, seconds = self._params(), _FIRST
            if index:
                wait = round((_WAIT if api.on_loop else _SHORT_WAIT) * (1 - api.rng.random() / 10))
                params |= {"index": str(index), "wait": f"{wait}s"}
                seconds = wait * (1 + _SLOWER) + _MARGIN
            reply = await api.get(path, params, timeout=seconds)
            index = _index(reply, index)
            if (answer := answers.read(reply)) is None:
                alive()
            else:
                update(answer)
            await api.pace(_AGAIN if answer is None else _NEWS, burst=_AT_ONCE)

    def _params(self) -> dict[str, str]:
        given = {"tag": self.tag, "dc": self.dc, "near": self.near}
        params = {key: value for key, value in given.items() if value is not None}
        return params | ({"passing": "1"} if self.passing else {})

    def _headers(self) -> Mapping[str, str]:
        """Return the header with the token, which is read again for each request."""
        token = self.token
        if token is None:
            if file := os.environ.get("CONSUL_HTTP_TOKEN_FILE"):
                token = read_secret("CONSUL_HTTP_TOKEN_FILE", file)
            elif text := os.environ.get("CONSUL_HTTP_TOKEN"):
                token = _of_environment(text)
        elif isinstance(token, os.PathLike):
            token = read_secret("token", token)
        return {} if token is None else {"X-Consul-Token": token}


async def _signs_of_life(api: RegistryApi, alive: Alive, dc: str | None) -> None:
    """Ask the agent for the leader of a datacenter, and call `alive` after each answer. This
    request needs no permission."""
    params = None if dc is None else {"dc": dc}
    while True:
        await api.pause(_SIGN * (1 - api.rng.random() / 10))
        with contextlib.suppress(DiscoveryError):  # the query will fail, or take too long
            if (await api.get("/v1/status/leader", params)).json():
                alive()


def from_url(url: SplitResult, query: Mapping[str, str]) -> Consul:
    """Parse a URL such as `http+consul://orders?tag=v2&dc=eu`: the instances of the service
    `orders` with this tag, in this datacenter."""
    if url.port is not None:
        raise ValueError(f"service must not have a port: instances have one ({shown(url)!r})")
    if (passing := query.get("passing", "").lower()) not in (*_TRUE, *_FALSE, ""):
        raise ValueError("service must have passing=true or passing=false in its query")
    try:
        return Consul(
            host_of(url),
            tag=query.get("tag"),
            dc=query.get("dc"),
            near=query.get("near"),
            passing=passing not in _FALSE,
        )
    except ValueError as error:
        raise ValueError(f"service is not valid: {error}") from None


def _of_environment(text: str) -> str:
    try:
        return secret("CONSUL_HTTP_TOKEN", text)
    except ValueError as error:
        raise DiscoveryError(str(error)) from None


def _word(name: str, value: object) -> str | None:
    """Check a parameter of a query."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name} must be text, not {validation.shown(value)}")
    if value is not None and (not value or not value.isprintable()):
        raise ValueError(f"{name} must be text of printable characters")
    return value


def _url(address: str | None) -> str:
    """Return the URL of the agent. Raises ValueError or TypeError."""
    name, given = "address", address
    if address is None:
        name, given = "CONSUL_HTTP_ADDR", os.environ.get("CONSUL_HTTP_ADDR") or _DEFAULT
    if not isinstance(given, str):
        raise TypeError(f"{name} must be text such as {_DEFAULT!r}, not {type(given).__name__}")
    scheme, separator, rest = given.partition("://")
    if scheme == "unix":
        raise ValueError(f"{name} must be a TCP address: Unix sockets are not supported")
    secure = _secure()
    if not separator:
        given = f"{'https' if secure else 'http'}://{given}"
    elif scheme == "http" and secure and address is None:  # as Consul's own client does
        given = f"https://{rest}"
    return registry_url(name, given)


def _secure() -> bool:
    text = os.environ.get("CONSUL_HTTP_SSL", "").lower()
    if text not in (*_TRUE, *_FALSE, ""):
        raise ValueError(f"CONSUL_HTTP_SSL must be true or false, not {text!r}")
    return text in _TRUE


def _index(reply: Reply, before: int) -> int:
    """Return the index for the next query; 0 for a query that does not block."""
    text = reply.headers.get("x-consul-index", "")
    if not _INDEX.fullmatch(text):
        raise DiscoveryError(
            f"{reply.registry} did not send X-Consul-Index; is this Consul's HTTP API?"
        )
    index = max(1, int(text))
    return 0 if index < before else index


class HealthAnswers:
    """Reads the responses of the health API about one service.

    Consul sends all instances whenever one of them changes. So only the part that differs from the
    last response is parsed.
    """

    def __init__(self, *, passing: bool) -> None:
        self._passing = passing
        self._body = b""
        self._starts: list[int] = []
        """The positions in the body at which the entries begin."""
        self._entries: list[_Entry] = []
        self._filtered = False
        """True if the token may not read all instances."""
        self._read_before = False

    def read(self, reply: Reply) -> Answer | None:
        """Return the answer, or None if nothing has changed since the last one.

        Raises DiscoveryError if the response is not a list of instances, or if the token may not
        read any of them.
        """
        filtered = reply.headers.get("x-consul-results-filtered-by-acls") == "true"
        first, last, entries = self._take(reply)
        changed = (
            not self._read_before
            or filtered != self._filtered
            or not _same(self._entries[first:last], entries)
        )
        self._entries[first:last] = entries
        self._filtered, self._read_before = filtered, True
        return self._answer(reply) if changed else None

    def _answer(self, reply: Reply) -> Answer:
        instances = [one for one in self._entries if isinstance(one, Instance)]
        _, refused = sorted_out(one for one in self._entries if isinstance(one, RejectedRecord))
        if self._filtered:
            if not self._entries:
                raise DiscoveryError(
                    f"{reply.registry}: the token may not read this service; it needs {_POLICY}"
                )
            refused.append(RejectedRecord("some instances", f"the token needs {_POLICY}"))
        return Answer(instances, refused=refused)

    def _take(self, reply: Reply) -> tuple[int, int, list[_Entry]]:
        """Parse the part of the body that has changed. Returns which of the last entries it
        replaces, and the new entries.

        The body is split into pieces at positions that look like the beginning of an entry. If each
        piece is valid JSON, the list is valid too, and the pieces are its entries. If a position
        was not the beginning of an entry, a piece is not valid JSON. Then the whole body is parsed
        instead.
        """
        old, body = self._body, reply.body.strip()
        first, last, begin, end = self._changed_part(body)
        ends = [*self._starts[1 : last + 1], len(old)][first:]
        known = {
            old[at : until - 1]: entry
            for at, until, entry in zip(
                self._starts[first:last], ends, self._entries[first:last], strict=False
            )
        }
        starts, entries = [], []
        try:
            if body[:1] + body[-1:] != b"[]":
                raise ValueError  # noqa: TRY301  # handled like other unusual forms
            for at, until in _pieces(body, begin, end) if len(body) > 2 else ():
                piece = body[at:until]
                if piece not in known:
                    known[piece] = _entry(json.loads(piece), passing=self._passing)
                starts.append(at)
                entries.append(known[piece])
        except (ValueError, RecursionError):  # not written in the usual form of Consul
            self._body, self._starts = b"", []
            document = reply.json()
            if not isinstance(document, list):
                raise DiscoveryError(f"{reply.registry} did not send a list of instances") from None
            return 0, len(self._entries), [_entry(one, passing=self._passing) for one in document]
        shift = len(body) - len(old)
        self._starts[first:] = [*starts, *(at + shift for at in self._starts[last:])]
        if not old:  # in an unusual form, the positions are unknown
            last = len(self._entries)
        self._body = body
        return first, last, entries

    def _changed_part(self, body: bytes) -> tuple[int, int, int, int]:
        """Compare the body with the last body. Return the indexes of the first entry that has
        changed, and of the first unchanged entry after it. Also return the positions in `body`
        where the changed part begins and ends."""
        old, starts = self._body, self._starts
        most, size = min(len(old), len(body)), len(old)
        same = _common(lambda low, high: body.startswith(old[low:high], low), most)
        same_end = _common(
            lambda low, high: body.endswith(old[size - high : size - low], 0, len(body) - low),
            most - same,
        )
        first = max(0, bisect_right(starts, same) - 1)
        last = bisect_left(starts, size - same_end + 1)
        end = starts[last] - 1 + len(body) - size if last < len(starts) else len(body) - 1
        return first, last, starts[first] if starts else 1, end


def _common(is_same: Callable[[int, int], bool], most: int) -> int:
    """Return the number of bytes that two texts have in common, at most `most`. `is_same(low,
    high)` compares a part of the texts. The parts are small, so that comparing them needs little
    memory."""
    low, size = 0, _BLOCK
    while low < most:
        high = min(low + size, most)
        if is_same(low, high):
            low = high
        elif (size := (high - low) // 2) == 0:
            break
    return low


def _pieces(body: bytes, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Split a part of a list at the places where Consul begins an entry."""
    while (at := body.find(_BETWEEN, begin, end)) >= 0:
        yield begin, at + 1
        begin = at + 2
    yield begin, end


def _same(before: list[_Entry], entries: list[_Entry]) -> bool:
    return len(before) == len(entries) and all(map(_is_same, before, entries))


def _is_same(one: _Entry, other: _Entry) -> bool:
    if isinstance(one, Instance) and isinstance(other, Instance):
        return one is other or (
            one == other and one.weight == other.weight and one.metadata == other.metadata
        )
    return one == other


def _entry(entry: object, *, passing: bool) -> _Entry:
    """Parse an entry: an instance of the service, its node, and the checks of both."""
    try:
        return _instance(_object(entry, "an entry"), passing=passing)
    except (ValueError, TypeError) as error:
        return RejectedRecord(_label(entry), short(str(error)))


def _instance(entry: dict[str, Any], *, passing: bool) -> Instance | None:
    node = _object(entry.get("Node"), "Node")
    service = _object(entry.get("Service"), "Service")
    weights = _object(service.get("Weights") or {}, "Weights")
    kind = _kind(entry.get("Checks") or [], passing=passing)
    if kind is None:
        return None
    if service.get("SocketPath"):
        raise ValueError("it listens on a Unix socket")
    host = service.get("Address") or node.get("Address")
    if not isinstance(host, str):
        raise TypeError("it has no address")
    meta = _object(service.get("Meta") or {}, "Meta")
    tags = service.get("Tags") or []
    own = {"tags": tags, "node": node.get("Node"), "datacenter": node.get("Datacenter")}
    port: Any = service.get("Port")
    return Instance(host, port, weights.get(kind, 1), metadata={**meta, **own})


def _kind(checks: object, *, passing: bool) -> str | None:
    """Return which of an instance's weights applies; None if it must not be used."""
    if not isinstance(checks, list):
        raise TypeError("Checks must be a list")
    statuses = [_object(one, "a check").get("Status") for one in checks]
    if all(one == "passing" for one in statuses):
        return "Passing"
    warned = not passing and all(one in ("passing", "warning") for one in statuses)
    return "Warning" if warned else None


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{what} must be an object")
    return value


def _label(entry: object) -> str:
    """Name an entry for logs: the ID of the service, and the node."""
    service, node = _field(_field(entry, "Service"), "ID"), _field(_field(entry, "Node"), "Node")
    return short(f"{service or '?'} on {node or '?'}")


def _field(value: object, key: str) -> object:
    return value.get(key) if isinstance(value, dict) else None
