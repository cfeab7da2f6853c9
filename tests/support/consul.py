"""A double of Consul: one agent, its HTTP API, and the catalog of its cluster.

It is written from Consul's public API reference. py-consul and Traefik, which know nothing of
lbclient, work against it (see `tests/discovery/test_consul_double.py`), so it cannot drift towards
what lbclient expects.

Tests change the catalog by methods (`add`, `remove`, `mark`), or by HTTP as a service does. They
cause faults by attributes: `fault`, `leader`, `index_of`.

`python -m tests.support.consul 10` is an agent with ten instances of `orders`, for benchmarks. It
writes its address, and lasts until its input ends.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import random
import re
import socket
import ssl
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

__all__ = ["Agent", "Policy", "Query", "parse_policy"]

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)(ms|s|m|h))+")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_RULE = re.compile(r'(\w+)\s+"([^"]*)"\s*\{\s*policy\s*=\s*"(\w+)"\s*\}')
_LEVELS = {"deny": 0, "read": 1, "write": 2}
_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})
STATUSES = ("passing", "warning", "critical")

Policy = tuple[tuple[str, str, str], ...]
"""Rules such as `("service_prefix", "orders", "read")`."""


def parse_policy(text: str) -> Policy:
    """Parse the rules of an ACL policy, as people write them in HCL."""
    if _RULE.sub("", re.sub(r"#[^\n]*", "", text)).strip():
        raise ValueError(f"this is no policy: {text}")
    return tuple(_RULE.findall(text))


def seconds_of(text: str) -> float:
    """Parse a duration of Go, such as `5m` or `1m30s`."""
    if not _DURATION.fullmatch(text):
        raise ValueError(f"time: invalid duration {text!r}")
    return sum(
        float(n) * _UNITS[unit] for n, unit in re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text)
    )


def _patience(query: Query) -> tuple[int, float]:
    """The index that a query knows, and the seconds for which it waits for another."""
    try:
        least = int(query.get("index") or 0)
    except ValueError:
        raise Failed(400, "Invalid index") from None
    try:
        wait = min(seconds_of(query.get("wait") or "5m"), 600.0)
    except ValueError:
        raise Failed(400, "Invalid wait time") from None
    return least, wait + wait / 16 * random.random()


def encoded(value: object) -> bytes:
    """JSON as Go's encoder writes it."""
    return json.dumps(value, separators=(",", ":")).translate(_ESCAPES).encode()


@dataclass(frozen=True)
class Query:
    """A request that the agent received."""

    method: str
    path: str
    params: dict[str, list[str]]
    headers: dict[str, str]
    at: float
    """When it came, in seconds of `time.monotonic`."""

    def get(self, name: str) -> str | None:
        """The last value of a parameter."""
        return self.params.get(name, [None])[-1]


class Failed(Exception):
    """The request gets this status and text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


@dataclass
class Check:
    """A check of a service, or of a node if it has no service."""

    id: str
    name: str
    status: str
    output: str = ""
    ttl: float | None = None
    deregister_after: float | None = None
    deadline: float | None = None
    critical_since: float | None = None


@dataclass
class Node:
    """A machine of the cluster, and its checks."""

    name: str
    address: str
    dc: str
    id: str
    distance: float = 0.0
    checks: dict[str, Check] = field(default_factory=dict)


@dataclass
class Service:
    """A registered instance of a service."""

    id: str
    name: str
    node: Node
    address: str
    port: int
    tags: list[str]
    meta: dict[str, str]
    weights: dict[str, int]
    created: int
    modified: int = 0
    socket_path: str = ""
    checks: dict[str, Check] = field(default_factory=dict)
    cache: tuple[int, bytes] = (-1, b"")

    @property
    def all_checks(self) -> list[Check]:
        return [*self.node.checks.values(), *self.checks.values()]

    @property
    def status(self) -> str:
        """The worst status of its checks and of those of its node."""
        return max((one.status for one in self.all_checks), key=STATUSES.index, default="passing")

    def encoded(self) -> bytes:
        if self.cache[0] != self.modified:
            self.cache = self.modified, encoded(self.as_dict())
        return self.cache[1]

    def as_dict(self) -> dict[str, object]:
        service = {
            "ID": self.id,
            "Service": self.name,
            "Tags": self.tags,
            "Address": self.address,
            "Meta": self.meta or None,
            "Port": self.port,
            "Weights": self.weights,
            "EnableTagOverride": False,
            "Proxy": {"Mode": "", "MeshGateway": {}, "Expose": {}},
            "Connect": {},
            "CreateIndex": self.created,
            "ModifyIndex": self.modified,
        }
        if self.socket_path:
            service["SocketPath"] = self.socket_path
        checks = [_check(one, self.node, self) for one in self.all_checks]
        return {"Node": _node(self.node), "Service": service, "Checks": checks}

    def in_catalog(self) -> dict[str, object]:
        return {
            "ID": self.node.id,
            "Node": self.node.name,
            "Address": self.node.address,
            "Datacenter": self.node.dc,
            "TaggedAddresses": {"lan": self.node.address, "wan": self.node.address},
            "NodeMeta": {"consul-network-segment": ""},
            "ServiceKind": "",
            "ServiceID": self.id,
            "ServiceName": self.name,
            "ServiceTags": self.tags,
            "ServiceAddress": self.address,
            "ServiceWeights": self.weights,
            "ServiceMeta": self.meta,
            "ServicePort": self.port,
            "ServiceEnableTagOverride": False,
            "CreateIndex": self.created,
            "ModifyIndex": self.modified,
        }

    def of_agent(self) -> dict[str, object]:
        return {
            "ID": self.id,
            "Service": self.name,
            "Tags": self.tags,
            "Meta": self.meta,
            "Port": self.port,
            "Address": self.address,
            "Weights": self.weights,
            "EnableTagOverride": False,
            "Datacenter": self.node.dc,
        }


def _node(node: Node) -> dict[str, object]:
    return {
        "ID": node.id,
        "Node": node.name,
        "Address": node.address,
        "Datacenter": node.dc,
        "TaggedAddresses": {"lan": node.address, "wan": node.address},
        "Meta": {"consul-network-segment": ""},
        "CreateIndex": 5,
        "ModifyIndex": 6,
    }


def _check(check: Check, node: Node, service: Service | None) -> dict[str, object]:
    own = service is not None and check.id in service.checks
    return {
        "Node": node.name,
        "CheckID": check.id,
        "Name": check.name,
        "Status": check.status,
        "Notes": "",
        "Output": check.output,
        "ServiceID": service.id if own else "",
        "ServiceName": service.name if own else "",
        "ServiceTags": service.tags if own else [],
        "Type": "ttl" if check.ttl else "",
        "Definition": {},
        "CreateIndex": 7,
        "ModifyIndex": 8,
    }


class Agent:
    """An agent on loopback. As a context manager it is stopped at the end.

    - `policies`: the rules by token; `""` is the anonymous token. None: ACLs are off.
    - `tls`: the server's context.
    - `datacenters`: the names of all datacenters; the first is the agent's own.
    """

    def __init__(
        self,
        *,
        policies: Mapping[str, Policy] | None = None,
        tls: ssl.SSLContext | None = None,
        datacenters: Iterable[str] = ("dc1",),
        node: str = "node-1",
    ) -> None:
        self.policies = policies
        self.datacenters = list(datacenters)
        self.node = Node(node, "127.0.0.1", self.datacenters[0], str(uuid.uuid4()))
        self.nodes: dict[str, Node] = {}
        self.services: dict[tuple[str, str], Service] = {}
        """By the node's name and the service's ID."""
        self.leader = True
        self.fault: Callable[[Query], tuple[int, str] | None] = lambda _: None
        """Returns the status and text of an error for a request, or None. It may block, or raise
        ConnectionError to cut the connection off."""
        self.index_of: Callable[[int], object] = lambda index: index
        """The value of the X-Consul-Index header; None sends no header."""
        self.body_of: Callable[[bytes], bytes] = lambda body: body
        """The body of a response, from the right one."""
        self.queries: list[Query] = []
        self.changed_at = 0.0
        """When the catalog last changed, in seconds of `time.monotonic`."""
        self.index = 10
        self._of_service: dict[tuple[str, str], int] = {}
        self._ahead = 0.0
        self._changed = threading.Condition()
        self._tls = tls
        self._port = 0
        self._server: _Server | None = None
        self._ticker: threading.Thread | None = None
        self._generation = 0
        self.blocked = 0
        """How many blocking queries wait now."""
        self._known(self.node)
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """Its URL."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}"

    # The process

    def start(self) -> None:
        """Listen, on the same port as before."""
        self._server = _Server(self, self._port, self._tls)
        self._port = self._server.server_address[1]
        self._ticker = threading.Thread(target=self._tick, args=(self._server,))
        self._ticker.start()

    def stop(self) -> None:
        """End the process: the port is closed, and all connections are cut off."""
        server, self._server = self._server, None
        if server is None:
            return
        with self._changed:
            server.stopping = True
            self._changed.notify_all()
        server.end()
        self._ticker.join()

    def restart(self, *, forget: bool = True) -> None:
        """Stop and start again. With `forget` the agent has lost the services of its own node."""
        self.stop()
        if forget:
            for key in [one for one in self.services if one[0] == self.node.name]:
                self._drop(key)
        self.start()

    # The catalog, as tests change it

    def add(
        self,
        name: str,
        address: str,
        port: int,
        *,
        service_id: str | None = None,
        node: str | None = None,
        node_address: str | None = None,
        dc: str | None = None,
        distance: float = 0.0,
        tags: Iterable[str] = (),
        meta: Mapping[str, str] | None = None,
        passing: int = 1,
        warning: int = 1,
        status: str | None = None,
        socket_path: str = "",
    ) -> str:
        """Register an instance at the same moment in the whole cluster, and return its ID."""
        with self._changed:
            home = self._known(
                Node(
                    node or self.node.name,
                    node_address or self.node.address,
                    dc or self.node.dc,
                    str(uuid.uuid4()),
                    distance,
                )
            )
            service_id = service_id or f"{name}-{port}"
            service = Service(
                service_id,
                name,
                home,
                address,
                port,
                list(tags),
                dict(meta or {}),
                {"Passing": passing, "Warning": warning},
                self.index + 1,
                socket_path=socket_path,
            )
            if status is not None:
                check = Check(f"service:{service_id}", f"Service '{name}' check", status)
                service.checks[check.id] = check
            self.services[home.name, service_id] = service
            self._touch(service)
        return service_id

    def remove(self, service_id: str) -> None:
        """Deregister an instance."""
        with self._changed:
            self._drop(self._key(service_id))

    def mark(self, service_id: str, status: str, output: str = "") -> None:
        """Set the status of an instance's first check."""
        with self._changed:
            service = self.services[self._key(service_id)]
            check = Check(f"service:{service_id}", f"Service '{service.name}' check", status)
            check = next(iter(service.checks.values()), check)
            service.checks.setdefault(check.id, check)
            self._set(check, status, output)
            self._touch(service)

    def mark_node(self, name: str, status: str) -> None:
        """Set the status of a node, as Serf's failure detector does."""
        with self._changed:
            self._set(self.nodes[name].checks["serfHealth"], status, "")
            for service in self.services.values():
                if service.node.name == name:
                    self._touch(service)

    def advance(self, seconds: float) -> None:
        """Let this time pass for the TTLs of checks."""
        with self._changed:
            self._ahead += seconds
            self._expire()

    def touch(self, name: str) -> None:
        """A write that changes nothing of this service: the index rises."""
        with self._changed:
            self.index += 1
            self._of_service[self.node.dc, name.lower()] = self.index
            self._changed.notify_all()

    def rewind(self, index: int = 3) -> None:
        """Restore an old snapshot: indexes go back."""
        with self._changed:
            self.index = index
            self._of_service = dict.fromkeys(self._of_service, index)
            for service in self.services.values():
                service.modified = index
                service.cache = (-1, b"")
            self.changed_at = time.monotonic()
            self._generation += 1
            self._changed.notify_all()

    def holding(self, service_id: str) -> bool:
        """True if the agent of this node has the service."""
        with self._changed:
            return (self.node.name, service_id) in self.services

    def status_of(self, service_id: str) -> str:
        with self._changed:
            return self.services[self._key(service_id)].status

    def asked(self, prefix: str = "/v1/health/service/") -> list[Query]:
        """The requests for a path."""
        return [one for one in list(self.queries) if one.path.startswith(prefix)]

    # How it works

    def _now(self) -> float:
        return time.monotonic() + self._ahead

    def _key(self, service_id: str) -> tuple[str, str]:
        return next(key for key in self.services if key[1] == service_id)

    def _known(self, node: Node) -> Node:
        known = self.nodes.setdefault(node.name, node)
        if not known.checks:
            known.checks["serfHealth"] = Check(
                "serfHealth", "Serf Health Status", "passing", "Agent alive and reachable"
            )
        return known

    def _touch(self, service: Service) -> None:
        self.index += 1
        service.modified = self.index
        service.cache = (-1, b"")
        self._of_service[service.node.dc, service.name.lower()] = self.index
        self.changed_at = time.monotonic()
        self._changed.notify_all()

    def _drop(self, key: tuple[str, str]) -> None:
        with self._changed:
            self._touch(self.services.pop(key))

    def _set(self, check: Check, status: str, output: str) -> None:
        now = self._now()
        if check.ttl is not None:
            check.deadline = now + check.ttl if status != "critical" else None
        if status != check.status:
            check.critical_since = now if status == "critical" else None
        check.status, check.output = status, output

    def _tick(self, server: _Server) -> None:
        """Let TTLs expire, on a thread of its own."""
        with self._changed:
            while not server.stopping:
                due = self._expire()
                self._changed.wait(None if due is None else max(0.001, due - self._now()))

    def _expire(self) -> float | None:
        """Apply what is due. Returns the time when more is due."""
        now, due = self._now(), []
        for key, service in list(self.services.items()):
            for check in service.checks.values():
                if check.deadline is not None and now >= check.deadline:
                    self._set(check, "critical", "TTL expired")
                    self._touch(service)
                since, after = check.critical_since, check.deregister_after
                if since is not None and after is not None and now >= since + after:
                    self._drop(key)
                    break
                if check.deadline is not None:
                    due.append(check.deadline)
                if since is not None and after is not None:
                    due.append(since + after)
        return min(due, default=None)

    def _allows(self, token: str, kind: str, name: str, level: str) -> bool:
        """The longest rule that matches counts; an exact one before a prefix."""
        if self.policies is None:
            return True
        best: tuple[int, int] | None = None
        for rule, subject, policy in self.policies.get(token, ()):
            exact = rule == kind and subject == name
            if exact or (rule == f"{kind}_prefix" and name.startswith(subject)):
                found = (len(subject) + exact, _LEVELS[policy])
                best = found if best is None or found > best else best
        return best is not None and best[1] >= _LEVELS[level]

    def _require(self, token: str, kind: str, name: str, level: str) -> None:
        if not self._allows(token, kind, name, level):
            raise Failed(
                403,
                "Permission denied: token with AccessorID '00000000-0000-0000-0000-000000000002' "
                f"lacks permission '{kind}:{level}' on \"{name}\"",
            )

    def answer(self, query: Query, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Answer a request, perhaps after a wait."""
        if (fault := self.fault(query)) is not None:
            raise Failed(*fault)
        token = query.headers.get("x-consul-token", "")
        bearer = query.headers.get("authorization", "")
        if not token and bearer.startswith("Bearer "):
            token = bearer.removeprefix("Bearer ")
        if self.policies is not None and token and token not in self.policies:
            raise Failed(403, "ACL not found")
        for (method, pattern), handle in _ROUTES.items():
            if (match := re.fullmatch(pattern, query.path)) is None:
                continue
            if method != query.method:
                continue
            found = handle(self, query, token, body, *map(unquote, match.groups()))
            if isinstance(found, tuple):
                return found
            return 200, {"Content-Type": "application/json"}, encoded(found)
        raise Failed(404, f"Invalid URL path: not a recognized HTTP API endpoint ({query.path})")

    def _blocking(
        self, query: Query, index: Callable[[], int], find: Callable[[], tuple[bytes, bool]]
    ) -> tuple[int, dict[str, str], bytes]:
        """Answer a query that may block, and may be stale."""
        stale, consistent = "stale" in query.params, "consistent" in query.params
        if stale and consistent:
            raise Failed(400, "Cannot specify ?stale with ?consistent, conflicting semantics.")
        if (query.get("dc") or self.node.dc) not in self.datacenters:
            raise Failed(500, "No path to datacenter")
        least, wait = _patience(query)
        with self._changed:
            if least > 0:
                self._wait(lambda: index() > least or not (self.leader or stale), wait)
            if not self.leader and not stale:
                raise Failed(500, "No cluster leader")
            body, filtered = find()
            headers = {
                "Content-Type": "application/json",
                "X-Consul-Knownleader": "true" if self.leader else "false",
                "X-Consul-Lastcontact": "0",
                "X-Consul-Effective-Consistency": (
                    "stale" if stale else "consistent" if consistent else "leader"
                ),
            }
            if (told := self.index_of(max(1, index()))) is not None:
                headers["X-Consul-Index"] = str(told)
            if filtered:
                headers["X-Consul-Results-Filtered-By-Acls"] = "true"
            if self.policies is not None:
                headers["X-Consul-Default-Acl-Policy"] = "deny"
        return 200, headers, body

    def _wait(self, condition: Callable[[], bool], seconds: float) -> None:
        server, before = self._server, self._generation
        self.blocked += 1
        self._changed.notify_all()
        self._changed.wait_for(
            lambda: server.stopping or condition() or self._generation != before, seconds
        )
        self.blocked -= 1
        if server.stopping:
            raise ConnectionError

    def until_blocked(self, number: int = 1) -> None:
        """Wait until this many blocking queries wait."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.blocked >= number, 20), self.blocked

    def until_asked(self, number: int, prefix: str = "/v1/health/service/") -> None:
        """Wait until there were this many requests for a path."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.asked(prefix)) >= number, 30)

    def log(self, query: Query) -> None:
        with self._changed:
            self.queries.append(query)
            self._changed.notify_all()

    def _named(self, name: str, dc: str) -> list[Service]:
        return [
            one
            for one in self.services.values()
            if one.name.lower() == name.lower() and one.node.dc == dc
        ]

    def _readable(self, found: list[Service], token: str) -> tuple[list[Service], bool]:
        """What a token may read, and whether it is told that there is more."""
        kept = [
            one
            for one in found
            if self._allows(token, "service", one.name, "read")
            and self._allows(token, "node", one.node.name, "read")
        ]
        return kept, bool(token) and len(kept) < len(found)

    def _index(self, dc: str, name: str) -> int:
        return self._of_service.get((dc, name.lower()), 0)

    def _instances(self, query: Query, token: str, name: str) -> tuple[list[Service], bool]:
        dc = query.get("dc") or self.node.dc
        found, filtered = self._readable(self._named(name, dc), token)
        for tag in query.params.get("tag", ()):
            found = [one for one in found if tag.lower() in map(str.lower, one.tags)]
        if query.get("near"):
            found.sort(key=lambda one: one.node.distance)
        return found, filtered

    # GET

    def health(self, query: Query, token: str, _: bytes, name: str) -> tuple:
        dc = query.get("dc") or self.node.dc
        passing = query.get("passing")
        if passing not in (None, "", "1", "t", "true", "0", "f", "false"):
            raise Failed(400, "Invalid value for ?passing")
        only = passing in ("", "1", "t", "true")

        def find() -> tuple[bytes, bool]:
            found, filtered = self._instances(query, token, name)
            chosen = [one for one in found if not only or one.status == "passing"]
            if "pretty" in query.params:
                pretty = json.dumps([one.as_dict() for one in chosen], indent=4) + "\n"
                return pretty.encode(), filtered
            return b"[" + b",".join(one.encoded() for one in chosen) + b"]", filtered

        return self._blocking(query, lambda: self._index(dc, name), find)

    def health_state(self, query: Query, token: str, _: bytes, state: str) -> tuple:
        dc = query.get("dc") or self.node.dc
        if state != "any" and state not in STATUSES:
            raise Failed(400, f"Unsupported state: {state}")

        def find() -> tuple[bytes, bool]:
            here = [one for one in self.services.values() if one.node.dc == dc]
            found, filtered = self._readable(here, token)
            nodes = {one.node.name: one.node for one in found}
            checks = [(one, node, None) for node in nodes.values() for one in node.checks.values()]
            checks += [(one, of.node, of) for of in found for one in of.checks.values()]
            chosen = [_check(*one) for one in checks if state in ("any", one[0].status)]
            return encoded(chosen), filtered

        return self._blocking(query, lambda: self.index, find)

    def catalog_service(self, query: Query, token: str, _: bytes, name: str) -> tuple:
        dc = query.get("dc") or self.node.dc

        def find() -> tuple[bytes, bool]:
            found, filtered = self._instances(query, token, name)
            return encoded([one.in_catalog() for one in found]), filtered

        return self._blocking(query, lambda: self._index(dc, name), find)

    def catalog_services(self, query: Query, token: str, _: bytes) -> tuple:
        dc = query.get("dc") or self.node.dc

        def find() -> tuple[bytes, bool]:
            here = [one for one in self.services.values() if one.node.dc == dc]
            found, filtered = self._readable(here, token)
            tags: dict[str, set[str]] = {"consul": set()}
            for one in found:
                tags.setdefault(one.name, set()).update(one.tags)
            return encoded({name: sorted(of) for name, of in tags.items()}), filtered

        return self._blocking(query, lambda: self.index, find)

    def catalog_nodes(self, query: Query, token: str, _: bytes) -> tuple:
        def find() -> tuple[bytes, bool]:
            found = [
                one for one in self.nodes.values() if self._allows(token, "node", one.name, "read")
            ]
            return encoded([_node(one) for one in found]), bool(token) and len(found) < len(
                self.nodes
            )

        return self._blocking(query, lambda: self.index, find)

    def catalog_datacenters(self, *_: object) -> object:
        return self.datacenters

    def status_leader(self, *_: object) -> object:
        return "127.0.0.1:8300" if self.leader else ""

    def agent_self(self, _query: Query, token: str, _: bytes) -> object:
        self._require(token, "agent", self.node.name, "read")
        return {
            "Config": {
                "Datacenter": self.node.dc,
                "NodeName": self.node.name,
                "NodeID": self.node.id,
                "Server": True,
                "Version": "1.21.0",
            },
            "Member": {"Name": self.node.name, "Addr": self.node.address, "Status": 1},
            "Meta": {},
        }

    def agent_services(self, _query: Query, token: str, _: bytes) -> object:
        with self._changed:
            return {
                one.id: one.of_agent()
                for one in self.services.values()
                if one.node is self.node and self._allows(token, "service", one.name, "read")
            }

    def agent_checks(self, _query: Query, token: str, _: bytes) -> object:
        with self._changed:
            return {
                check.id: _check(check, one.node, one)
                for one in self.services.values()
                if one.node is self.node and self._allows(token, "service", one.name, "read")
                for check in one.checks.values()
            }

    def agent_service(self, _query: Query, token: str, _: bytes, service_id: str) -> object:
        with self._changed:
            service = self._own(service_id)
            self._require(token, "service", service.name, "read")
            return service.of_agent()

    # PUT

    def _own(self, service_id: str) -> Service:
        if (service := self.services.get((self.node.name, service_id))) is None:
            raise Failed(
                404,
                f'Unknown service ID "{service_id}". '
                "Ensure that the service ID is passed, not the service name.",
            )
        return service

    def register(self, query: Query, token: str, body: bytes) -> object:
        try:
            given = {key.lower(): value for key, value in json.loads(body).items()}
        except (ValueError, AttributeError) as error:
            raise Failed(400, f"Request decode failed: {error}") from None
        if not (name := given.get("name")):
            raise Failed(400, "Missing service name")
        address = given.get("address") or ""
        with contextlib.suppress(ValueError):
            if ipaddress.ip_address(address).is_unspecified:
                raise Failed(400, "Invalid service address")
        meta = given.get("meta") or {}
        for key, value in meta.items():
            if not isinstance(value, str):
                raise Failed(400, "Request decode failed: 'Meta' expected type 'string'")
            if not re.fullmatch("[A-Za-z0-9_-]{1,128}", key) or len(value) > 512:
                raise Failed(400, f"Invalid Service Meta: Couldn't load metadata pair ('{key}')")
        weights = given.get("weights") or {}
        weights = {"Passing": weights.get("Passing", 1), "Warning": weights.get("Warning", 1)}
        if weights["Passing"] < 1:
            raise Failed(400, "Invalid Weights: Passing must be greater than 0")
        self._require(token, "service", name, "write")
        service_id = given.get("id") or name
        listed = [*([given["check"]] if given.get("check") else []), *(given.get("checks") or ())]
        with self._changed:
            before = self.services.get((self.node.name, service_id))
            service = Service(
                service_id,
                name,
                self.node,
                address,
                given.get("port") or 0,
                list(given.get("tags") or ()),
                dict(meta),
                weights,
                self.index + 1,
            )
            if before is not None and "replace-existing-checks" not in query.params:
                service.checks = dict(before.checks)
            for number, one in enumerate(listed, 1):
                check = self._checked(one, service, number if len(listed) > 1 else 0)
                service.checks[check.id] = check
            self.services[self.node.name, service_id] = service
            self._touch(service)
        return 200, {}, b""

    def _checked(self, given: object, service: Service, number: int) -> Check:
        one = {key.lower(): value for key, value in given.items()}
        status = one.get("status") or "critical"
        if status not in STATUSES:
            raise Failed(400, "Status for checks must 'passing', 'warning', 'critical'")
        if not any(one.get(kind) for kind in ("ttl", "http", "tcp", "args", "script", "grpc")):
            raise Failed(400, "Must provide TTL or Script/DockerContainerID/HTTP/TCP and Interval")
        after = one.get("deregistercriticalserviceafter")
        default = f"service:{service.id}{f':{number}' if number else ''}"
        ttl = seconds_of(one["ttl"]) if one.get("ttl") else None
        check = Check(
            one.get("checkid") or default,
            one.get("name") or f"Service '{service.name}' check",
            status,
            ttl=ttl,
            deregister_after=max(60.0, seconds_of(after)) if after else None,
        )
        now = self._now()
        check.deadline = None if ttl is None or status == "critical" else now + ttl
        check.critical_since = now if status == "critical" else None
        return check

    def deregister(self, _query: Query, token: str, _: bytes, service_id: str) -> object:
        with self._changed:
            self._require(token, "service", self._own(service_id).name, "write")
            self._drop((self.node.name, service_id))
        return 200, {}, b""

    def maintenance(self, query: Query, token: str, _: bytes, service_id: str) -> object:
        if (enable := query.get("enable")) not in ("true", "false"):
            raise Failed(400, "Missing value for enable")
        with self._changed:
            service = self._own(service_id)
            self._require(token, "service", service.name, "write")
            name = f"_service_maintenance:{service_id}"
            if enable == "true":
                check = Check(
                    name, "Service Maintenance Mode", "critical", query.get("reason") or ""
                )
                service.checks[name] = check
            else:
                service.checks.pop(name, None)
            self._touch(service)
        return 200, {}, b""

    def _update_check(self, token: str, check_id: str, status: str, output: str) -> tuple:
        with self._changed:
            for service in self.services.values():
                if service.node is self.node and check_id in service.checks:
                    self._require(token, "service", service.name, "write")
                    check = service.checks[check_id]
                    if check.ttl is None:
                        raise Failed(500, f'CheckID "{check_id}" does not have associated TTL')
                    before = check.status, check.output
                    self._set(check, status, output)
                    if before != (status, output):
                        self._touch(service)
                    self._changed.notify_all()
                    return 200, {}, b""
        raise Failed(
            404,
            f'Unknown check ID "{check_id}". '
            "Ensure that the check ID is passed, not the check name.",
        )

    def check_pass(self, query: Query, token: str, _: bytes, check_id: str) -> object:
        return self._update_check(token, check_id, "passing", query.get("note") or "")

    def check_warn(self, query: Query, token: str, _: bytes, check_id: str) -> object:
        return self._update_check(token, check_id, "warning", query.get("note") or "")

    def check_fail(self, query: Query, token: str, _: bytes, check_id: str) -> object:
        return self._update_check(token, check_id, "critical", query.get("note") or "")

    def check_update(self, _query: Query, token: str, body: bytes, check_id: str) -> object:
        given = json.loads(body)
        if given.get("Status") not in STATUSES:
            raise Failed(400, f"Invalid check status: '{given.get('Status')}'")
        return self._update_check(token, check_id, given["Status"], given.get("Output", ""))


_ROUTES = {
    ("GET", "/v1/status/leader"): Agent.status_leader,
    ("GET", "/v1/agent/self"): Agent.agent_self,
    ("GET", "/v1/agent/services"): Agent.agent_services,
    ("GET", "/v1/agent/checks"): Agent.agent_checks,
    ("GET", "/v1/agent/service/([^/]+)"): Agent.agent_service,
    ("PUT", "/v1/agent/service/register"): Agent.register,
    ("PUT", "/v1/agent/service/deregister/([^/]+)"): Agent.deregister,
    ("PUT", "/v1/agent/service/maintenance/([^/]+)"): Agent.maintenance,
    ("PUT", "/v1/agent/check/pass/([^/]+)"): Agent.check_pass,
    ("PUT", "/v1/agent/check/warn/([^/]+)"): Agent.check_warn,
    ("PUT", "/v1/agent/check/fail/([^/]+)"): Agent.check_fail,
    ("PUT", "/v1/agent/check/update/([^/]+)"): Agent.check_update,
    ("GET", "/v1/catalog/datacenters"): Agent.catalog_datacenters,
    ("GET", "/v1/catalog/nodes"): Agent.catalog_nodes,
    ("GET", "/v1/catalog/services"): Agent.catalog_services,
    ("GET", "/v1/catalog/service/([^/]+)"): Agent.catalog_service,
    ("GET", "/v1/health/service/([^/]+)"): Agent.health,
    ("GET", "/v1/health/state/([^/]+)"): Agent.health_state,
}


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True
    request_queue_size = 256

    def __init__(self, agent: Agent, port: int, tls: ssl.SSLContext | None) -> None:
        self.agent = agent
        self.stopping = False
        self._tls = tls
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", port), _Handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self._thread.start()

    def end(self) -> None:
        self.shutdown()
        self._thread.join()
        with self._lock:
            for one in self._open:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def process_request(self, request: socket.socket, client_address: object) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def finish_request(self, request: socket.socket, client_address: object) -> None:
        if self._tls is None:
            super().finish_request(request, client_address)
            return
        try:
            secure = self._tls.wrap_socket(request, server_side=True)
        except OSError:  # the client did not like the certificate
            return
        with self._lock:
            self._open.discard(request)
            self._open.add(secure)
        try:
            super().finish_request(secure, client_address)
        finally:
            with self._lock:
                self._open.discard(secure)
            secure.close()

    def shutdown_request(self, request: socket.socket) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _respond(self) -> None:
        agent = self.server.agent
        url = urlsplit(self.path)
        query = Query(
            self.command,
            url.path,
            parse_qs(url.query, keep_blank_values=True),
            {name.lower(): value for name, value in self.headers.items()},
            time.monotonic(),
        )
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        agent.log(query)
        try:
            status, headers, data = agent.answer(query, body)
            data = agent.body_of(data)
        except Failed as failed:
            status, headers, data = failed.status, {}, failed.text.encode()
        except ConnectionError:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = _respond  # noqa: N815  # the names that http.server looks for

    def log_message(self, *_: object) -> None:
        """The log of requests is `Agent.queries`."""


def _main(many: int) -> None:
    with Agent() as agent:
        for number in range(many):
            agent.add(
                "orders",
                f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}",
                8080,
                service_id=f"orders-{number}",
                tags=["v2", "production"],
                meta={"zone": f"eu-1{'abc'[number % 3]}", "version": "1.2.3"},
                status="passing",
            )
        sys.stdout.write(f"{agent.address}\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    _main(int(sys.argv[1]))
