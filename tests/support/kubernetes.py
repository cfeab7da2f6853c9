"""An API server of Kubernetes, as far as clients that list and watch can tell.

It keeps any objects of the resources that `RESOURCES` names, and serves them as the public API
reference says: lists in pages, watches that continue from a version, bookmarks, initial events,
versions that are gone, label selectors, tokens and RBAC, discovery documents. `kubectl` and
Traefik work with it (`tests/discovery/test_kubernetes.py`), which keeps it honest.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import json
import select
import socket
import ssl
import sys
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

RESOURCES = {
    # (group, version, plural): (kind, namespaced)
    ("", "v1", "services"): ("Service", True),
    ("", "v1", "secrets"): ("Secret", True),
    ("", "v1", "endpoints"): ("Endpoints", True),
    ("", "v1", "configmaps"): ("ConfigMap", True),
    ("", "v1", "pods"): ("Pod", True),
    ("", "v1", "serviceaccounts"): ("ServiceAccount", True),
    ("", "v1", "namespaces"): ("Namespace", False),
    ("", "v1", "nodes"): ("Node", False),
    ("apps", "v1", "deployments"): ("Deployment", True),
    ("discovery.k8s.io", "v1", "endpointslices"): ("EndpointSlice", True),
    ("networking.k8s.io", "v1", "ingresses"): ("Ingress", True),
    ("networking.k8s.io", "v1", "ingressclasses"): ("IngressClass", False),
    ("rbac.authorization.k8s.io", "v1", "roles"): ("Role", True),
    ("rbac.authorization.k8s.io", "v1", "rolebindings"): ("RoleBinding", True),
}
SLICES = ("discovery.k8s.io", "v1", "endpointslices")
SERVICE_NAME = "kubernetes.io/service-name"
VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]


def endpoint(address, *, pod=None, zone=None, node=None, uid=None, **conditions):
    """An endpoint of a slice; `conditions` are ready, serving, terminating."""
    made = {"addresses": [address], "conditions": conditions}
    if pod is not None:
        made["targetRef"] = {"kind": "Pod", "name": pod, "uid": uid or f"uid-{pod}"}
    if zone is not None:
        made["zone"] = zone
    if node is not None:
        made["nodeName"] = node
    return made


def a_slice(name, endpoints, ports=8080, *, service="orders", namespace="shop", family="IPv4"):
    """An EndpointSlice. `ports` is a number, a dict of names, or a list as in the document."""
    if isinstance(ports, int):
        ports = {"http": ports}
    if isinstance(ports, dict):
        ports = [{"name": key, "port": one, "protocol": "TCP"} for key, one in ports.items()]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": namespace, "labels": {SERVICE_NAME: service}},
        "addressType": family,
        "endpoints": [one if isinstance(one, dict) else endpoint(one) for one in endpoints],
        "ports": ports,
    }


@dataclass
class Asked:
    """A request, as RBAC sees it."""

    verb: str
    group: str
    resource: str
    namespace: str | None
    query: dict[str, str]
    headers: dict[str, str]


@dataclass
class Event:
    """What happened to an object; `before` and `after` it."""

    version: int
    resource: tuple[str, str, str]
    before: dict | None
    after: dict | None


class ApiServer:
    """The server. Its methods may be called from any thread while clients watch."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.tokens: set[str] | None = None
        """The accepted tokens; None: no token is needed."""
        self.allowed: set[tuple[str, str]] | None = None
        """The permitted pairs of verb and resource; None: all."""
        self.gone_as = "event"
        """How a watch learns that its version is gone: "event" or "status"."""
        self.bookmarks = True
        self.hook = None
        """Called with (handler, asked) first; if it returns True, it has answered."""
        self.asked: list[Asked] = []
        self.arrived = threading.Semaphore(0)
        """Released once a request."""
        self.context = context
        self._objects: dict[tuple, dict] = {}
        self._version = 100
        self._oldest = 100
        self._events: list[Event] = []
        self._changed = threading.Condition()
        self._generation = 0
        self._bookmarked = 0
        self.watching = 0
        self.port = 0
        self._start()

    @property
    def url(self) -> str:
        return f"http{'s' if self.context else ''}://127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._server.open)

    # What happens in the cluster

    def put(self, document, resource=SLICES):
        """Create or replace an object."""
        with self._changed:
            document = copy.deepcopy(document)
            metadata = document["metadata"]
            key = (resource, metadata.get("namespace"), metadata["name"])
            before = self._objects.get(key)
            self._version += 1
            metadata["resourceVersion"] = str(self._version)
            old = before["metadata"]["uid"] if before else f"uid-{self._version}"
            metadata.setdefault("uid", old)
            metadata.setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
            self._objects[key] = document
            self._record(resource, before, document)
        return document

    def delete(self, name, namespace="shop", resource=SLICES):
        """Delete an object."""
        with self._changed:
            before = self._objects.pop((resource, namespace, name))
            self._version += 1
            before = copy.deepcopy(before)
            before["metadata"]["resourceVersion"] = str(self._version)
            self._record(resource, before, None)

    def get(self, name, namespace="shop", resource=SLICES):
        return copy.deepcopy(self._objects[resource, namespace, name])

    def touch(self):
        """Something else in the cluster changes."""
        self.put(
            {"metadata": {"name": "other", "namespace": "kube-system"}}, ("", "v1", "configmaps")
        )

    def compact(self):
        """Forget the history: versions before now are gone."""
        with self._changed:
            self._version += 1
            self._oldest = self._version
            self._changed.notify_all()

    def bookmark(self):
        """Send a bookmark to all watches that allow it."""
        with self._changed:
            self._bookmarked += 1
            self._changed.notify_all()

    def end_watches(self):
        """End all watches, as their time-out does, and wait until they have ended."""
        with self._changed:
            self._generation += 1
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: not self.watching, 20)

    def drop_connections(self):
        """Break all connections, as a crash does."""
        with self._server.lock:
            open_now = list(self._server.open)
        for one in open_now:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(one, socket.SHUT_RDWR)

    def stop(self):
        """Stop listening, and break all connections."""
        self._server.shutdown()
        self._server.server_close()  # the port refuses from now on
        with self._changed:
            self._generation += 1
            self._changed.notify_all()
        self.drop_connections()
        self._thread.join()
        for one in self._server.threads:
            one.join()

    def restart(self):
        """Listen again, on the same port."""
        self._start()

    def _start(self):
        self._server = _Server(("127.0.0.1", self.port), _Handler)
        self._server.api = self
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def _record(self, resource, before, after):
        self._events.append(Event(self._version, resource, before, after))
        self._changed.notify_all()

    def wait_until_watched(self, watches=1, timeout=20):
        """Wait until there are this many watches."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.watching >= watches, timeout)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 512
    allow_reuse_address = True

    def __init__(self, *args):
        self.open = set()
        self.threads = []
        self.lock = threading.Lock()
        super().__init__(*args)

    def process_request(self, request, client_address):
        thread = threading.Thread(target=self._process, args=(request, client_address))
        with self.lock:
            self.open.add(request)
            self.threads = [one for one in self.threads if one.is_alive()] + [thread]
        thread.start()

    def _process(self, request, client_address):
        raw, context = request, self.api.context
        try:
            if context is not None:
                request = context.wrap_socket(request, server_side=True)
                with self.lock:
                    self.open.add(request)
            self.finish_request(request, client_address)
        except (OSError, ValueError):
            pass
        finally:
            with self.lock:
                self.open -= {raw, request}
            self.shutdown_request(request)


class _Refused(Exception):
    def __init__(self, code, reason, message):
        super().__init__(message)
        self.status = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "code": code,
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._serve()

    do_POST = do_PUT = do_DELETE = do_PATCH = do_GET  # noqa: N815

    def _serve(self):
        length = int(self.headers.get("content-length", 0))
        self.body = json.loads(self.rfile.read(length)) if length else None
        try:
            self._answer()
        except _Refused as error:
            self.send(error.status["code"], error.status)

    def send(self, code, document):
        data = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def begin(self):
        """Begin a response in chunks."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _answer(self):
        api = self.server.api
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        parts = [one for one in url.path.split("/") if one]
        if api.tokens is not None:
            token = self.headers.get("authorization", "").removeprefix("Bearer ")
            if token not in api.tokens:
                raise _Refused(401, "Unauthorized", "Unauthorized")
        if (found := _documents(parts)) is not None:
            self.send(200, found)
            return
        resource, namespace, name = _resource(parts)
        verb = self._verb(name, query)
        asked = Asked(verb, resource[0], resource[2], namespace, query, dict(self.headers.items()))
        api.asked.append(asked)
        api.arrived.release()
        if api.hook is not None and api.hook(self, asked):
            return
        if api.allowed is not None and (verb, resource[2]) not in api.allowed:
            where = f' in the namespace "{namespace}"' if namespace else " at the cluster scope"
            dotted = ".".join(filter(None, [resource[2], resource[0]]))
            raise _Refused(
                403,
                "Forbidden",
                f'{dotted} is forbidden: User "system:serviceaccount:shop:default" cannot {verb} '
                f'resource "{resource[2]}" in API group "{resource[0]}"{where}',
            )
        if verb == "watch":
            self._watch(resource, namespace, query)
        elif verb == "list":
            self.send(200, self._list(resource, namespace, query))
        else:
            self.send(
                201 if verb == "create" else 200, self._change(verb, resource, namespace, name)
            )

    def _verb(self, name, query):
        if self.command == "GET":
            if name is not None:
                return "get"
            return "watch" if query.get("watch") in ("true", "1") else "list"
        return {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[
            self.command
        ]

    def _change(self, verb, resource, namespace, name):
        api = self.server.api
        key = resource, namespace, name
        if verb != "create" and key not in api._objects:
            raise _Refused(404, "NotFound", f'{resource[2]} "{name}" not found')
        if verb == "get":
            return api._objects[key]
        if verb == "delete":
            api.delete(name, namespace, resource)
            return {"kind": "Status", "apiVersion": "v1", "status": "Success"}
        document = self.body
        if verb == "patch":  # RFC 7386; kubectl's other kinds of patches are not understood
            document = _merged(api._objects[key], document)
        document["metadata"].setdefault("namespace", namespace)
        if verb == "create" and (resource, namespace, document["metadata"]["name"]) in api._objects:
            raise _Refused(409, "AlreadyExists", f'{resource[2]} "{name}" already exists')
        return api.put(document, resource)

    def _list(self, resource, namespace, query):
        api = self.server.api
        group, version, _ = resource
        with api._changed:
            start, at = "", api._version
            if (token := query.get("continue")) is not None:
                start, at = json.loads(base64.urlsafe_b64decode(token))
                if at < api._oldest:
                    raise _Refused(
                        410,
                        "Expired",
                        "The provided continue parameter is too old to display a consistent list",
                    )
            matching = [
                one
                for (kind, _, name), one in sorted(
                    api._objects.items(), key=lambda item: item[0][2]
                )
                if kind == resource and name > start and _matches(one, namespace, query)
            ]
            limit = int(query.get("limit") or 0) or len(matching)
            page, rest = matching[:limit], matching[limit:]
            metadata = {"resourceVersion": str(at)}
            if rest:
                token = json.dumps([page[-1]["metadata"]["name"], at]).encode()
                metadata["continue"] = base64.urlsafe_b64encode(token).decode()
                metadata["remainingItemCount"] = len(rest)
            return {
                "kind": f"{RESOURCES[resource][0]}List",
                "apiVersion": f"{group}/{version}" if group else version,
                "metadata": metadata,
                "items": page,
            }

    def _watch(self, resource, namespace, query):
        api = self.server.api
        given = query.get("resourceVersion", "")
        with api._changed:
            at = int(given) if given.isdigit() else 0
            if at and at < api._oldest and api.gone_as == "status":
                raise _gone(at, api._oldest)
            api.watching += 1
            api._changed.notify_all()
            generation, bookmarked = api._generation, api._bookmarked
        try:
            self.begin()
            if at and at < api._oldest:
                self._event("ERROR", _gone(at, api._oldest).status)
                self.chunk(b"")
                return
            if not at or query.get("sendInitialEvents") == "true":
                at = self._initial(resource, namespace, query)
            self._follow(resource, namespace, query, at, generation, bookmarked)
        finally:
            with api._changed:
                api.watching -= 1
                api._changed.notify_all()
            self.close_connection = True

    def _follow(self, resource, namespace, query, at, generation, bookmarked):
        """Send what happens after the version `at`, until the watch ends or is left."""
        api = self.server.api
        bookmarks = api.bookmarks and query.get("allowWatchBookmarks") in ("true", "1")
        end = time.monotonic() + float(query.get("timeoutSeconds") or 3600)
        ended = False
        while not ended and not self._is_left():
            with api._changed:
                api._changed.wait_for(
                    lambda at=at, bookmarked=bookmarked: (
                        (api._version, api._generation, api._bookmarked)
                        != (at, generation, bookmarked)
                    ),
                    timeout=0.05,
                )
                ended = api._generation != generation or time.monotonic() > end
                marks = bookmarks and api._bookmarked != bookmarked
                news = [one for one in api._events if one.version > at]
                at, bookmarked = api._version, api._bookmarked
            for one in news:
                self._change_of(one, resource, namespace, query)
            if marks:
                self._mark(resource, at)
        self.chunk(b"")

    def _is_left(self):
        """True if the client has closed the connection of its watch."""
        return bool(select.select([self.connection], [], [], 0)[0])

    def _initial(self, resource, namespace, query):
        api = self.server.api
        with api._changed:
            at = api._version
            found = [
                one
                for (kind, *_), one in api._objects.items()
                if kind == resource and _matches(one, namespace, query)
            ]
        for one in found:
            self._event("ADDED", one)
        if query.get("sendInitialEvents") == "true":
            self._mark(resource, at, {"k8s.io/initial-events-end": "true"})
        return at

    def _mark(self, resource, at, annotations=None):
        group, version, _ = resource
        metadata = {"resourceVersion": str(at), "creationTimestamp": None}
        if annotations:
            metadata["annotations"] = annotations
        kind = {"kind": RESOURCES[resource][0]}
        kind["apiVersion"] = f"{group}/{version}" if group else version
        self._event("BOOKMARK", {**kind, "metadata": metadata})

    def _change_of(self, event, resource, namespace, query):
        if event.resource != resource:
            return
        before = event.before is not None and _matches(event.before, namespace, query)
        after = event.after is not None and _matches(event.after, namespace, query)
        if after:
            self._event("MODIFIED" if before else "ADDED", event.after)
        elif before:
            document = copy.deepcopy(event.before)
            document["metadata"]["resourceVersion"] = str(event.version)
            self._event("DELETED", document)

    def _event(self, kind, document):
        self.chunk(json.dumps({"type": kind, "object": document}).encode() + b"\n")


def _gone(at, oldest):
    return _Refused(410, "Expired", f"too old resource version: {at} ({oldest})")


def _matches(document, namespace, query):
    metadata = document["metadata"]
    if namespace is not None and metadata.get("namespace") != namespace:
        return False
    labels = metadata.get("labels", {})
    for term in filter(None, query.get("labelSelector", "").split(",")):
        key, _, value = term.replace("==", "=").partition("=")
        if not value and key.startswith("!"):
            if key[1:] in labels:
                return False
        elif key.endswith("!"):
            if labels.get(key[:-1]) == value:
                return False
        elif labels.get(key) != value if "=" in term else key not in labels:
            return False
    for term in filter(None, query.get("fieldSelector", "").split(",")):
        key, _, value = term.partition("=")
        if key == "metadata.name" and metadata["name"] != value:
            return False
    return True


def _merged(document, patch):
    if not isinstance(patch, dict):
        return patch
    made = copy.deepcopy(document) if isinstance(document, dict) else {}
    for key, value in patch.items():
        if value is None:
            made.pop(key, None)
        else:
            made[key] = _merged(made.get(key), value)
    return made


def _resource(parts):
    if parts[:1] == ["api"]:
        group, (version, *rest) = "", parts[1:]
    elif parts[:1] == ["apis"] and len(parts) > 3:
        group, version, *rest = parts[1:]
    else:
        raise _Refused(404, "NotFound", "the server could not find the requested resource")
    namespace = None
    if rest[0] == "namespaces" and len(rest) > 2:
        _, namespace, *rest = rest
    resource = group, version, rest[0]
    if resource not in RESOURCES or len(rest) > 2:
        raise _Refused(404, "NotFound", "the server could not find the requested resource")
    return resource, namespace, rest[1] if len(rest) > 1 else None


def _documents(parts):
    """The documents by which clients discover what a server has."""
    groups = sorted({(group, version) for group, version, _ in RESOURCES if group})
    if parts == ["version"]:
        return {"major": "1", "minor": "33", "gitVersion": "v1.33.0", "platform": "linux/amd64"}
    if parts == ["api"]:
        return {"kind": "APIVersions", "versions": ["v1"]}
    if parts == ["apis"]:
        return {
            "kind": "APIGroupList",
            "apiVersion": "v1",
            "groups": [_group(*one) for one in groups],
        }
    if parts[:1] == ["apis"] and len(parts) == 2:
        return next((_group(*one) for one in groups if one[0] == parts[1]), None)
    group = "" if parts[:1] == ["api"] else parts[1] if parts[:1] == ["apis"] else None
    if group is None or len(parts) != (3 if group else 2):
        return None
    found = [
        {
            "name": plural,
            "singularName": kind.lower(),
            "namespaced": namespaced,
            "kind": kind,
            "verbs": VERBS,
        }
        for (of, _, plural), (kind, namespaced) in RESOURCES.items()
        if of == group
    ]
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": f"{group}/v1" if group else "v1",
        "resources": found,
    }


def _group(name, version):
    both = {"groupVersion": f"{name}/{version}", "version": version}
    return {
        "kind": "APIGroup",
        "apiVersion": "v1",
        "name": name,
        "versions": [both],
        "preferredVersion": both,
    }


def many_slices(many, size=100):
    """Slices with so many endpoints together."""
    addresses = [f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}" for n in range(many)]
    return [
        a_slice(
            f"orders-{start // size}",
            [
                endpoint(one, pod=f"orders-{one}", zone="eu-1a", node=f"node-{start}", ready=True)
                for one in addresses[start : start + size]
            ],
        )
        for start in range(0, many, size)
    ]


if __name__ == "__main__":
    with ApiServer() as cluster:
        for one in many_slices(int(sys.argv[1])):
            cluster.put(one)
        print(cluster.url, flush=True)  # noqa: T201  # the program that has started this reads it
        sys.stdin.read()
