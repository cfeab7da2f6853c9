"""Services in etcd: lists the keys under a prefix, and then watches them, through etcd's JSON
gateway.

**A change is never missed.** The list has a revision, and the watch sends every change after this
revision. If the watch ends, the next watch begins after the revision of the last change. If etcd
has compacted that revision, the keys are listed again.

**A silent watch is begun again.** If nothing changes, etcd by default sends a message only every
ten minutes. A client of the gateway cannot ask for such a message, since the body of a request ends
before its response begins. So after 30 s without a message, the watch is begun again, which takes
one small request. etcd confirms the new watch at once, which shows that etcd is alive. Listing the
keys every 30 s would cost the same, but would not show that a watch still works.

**A member without a leader is not used.** Such a member cannot send changes, and does not report
this. So each request demands that the member has a leader, as etcd's own client does. If the member
has none, the next member is asked. Lists are linearizable, etcd's default.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar
from urllib.parse import SplitResult, unquote

from lbclient._internal import validation
from lbclient.discovery.entries import (
    distinct_keys,
    from_object,
    from_text,
    host_and_port,
    no_number,
    parsed,
    short,
    sorted_out,
)
from lbclient.discovery.pushed.api import (
    LineStream,
    LostConnection,
    RegistryApi,
    StatusError,
    registry_url,
    secret,
)
from lbclient.discovery.pushed.source import Alive, PushedSource, Update
from lbclient.endpoint.instance import Answer, Instance, RejectedRecord, answer_of_distinct
from lbclient.errors import DiscoveryError

__all__ = [
    "Etcd",
    "EtcdCluster",
    "Keys",
    "Message",
    "Page",
    "encoded",
    "entry_of",
    "from_url",
    "message_of",
    "page_of",
]

T = TypeVar("T")
_ENDPOINTS = "http://127.0.0.1:2379"
_PAGE = 500
"""The maximum number of keys on one page of the list. A page takes a few milliseconds to read and
parse."""
_MOST_KEYS = 100_000
_LARGEST_VALUE = 64 << 10
"""The maximum number of bytes of a value. An instance needs a few hundred bytes. Parsing a large
object would occupy the interpreter for long."""
_SILENCE = 30.0
"""Seconds without a message after which the watch is begun again."""
_TIMEOUT = 6.0
"""Seconds for one request, including the repetitions at other members."""
_SHORTEST = 1.0
"""Seconds for one member, at least."""
_HEADERS = {"grpc-metadata-hasleader": "true"}
"""The header by which a request fails if the member has no leader."""
_INTEGER = re.compile(r"-?[0-9]{1,19}")
_HINTS = {403: "the user needs a role with permission for all keys with the prefix"}
_TOKEN_REFUSED = "auth token", "auth store", "user name is empty"
"""Parts of etcd's error texts about a token that is missing, has expired, or is older than the last
change of the users."""


class Etcd(PushedSource):
    """The instances whose keys in etcd begin with a prefix.

        lbclient.Client(lbclient.Etcd("/services/orders/"))

    The value of a key is `host:port` or a JSON object. The object has the fields of `Instance`, at
    least `host` and `port`, or it is the object that gRPC's naming for etcd writes: `{"Op": 0,
    "Addr": "host:port", "Metadata": ...}`. A key with any other value is left out, and the answer
    contains the reason.

    - `prefix`: must end in `/`. Otherwise `/services/orders` would also include the instances under
      `/services/orders2/`.
    - `endpoints`: the URLs of the cluster's members, as a list, or as text with commas. The default
      is the environment variable `ETCDCTL_ENDPOINTS`, or else `http://127.0.0.1:2379`. One member
      is used; if it fails, the next member is used.
    - `user`, `password`: for a cluster with authentication. The defaults are the environment
      variables `ETCDCTL_USER` (`name:password`) and `ETCDCTL_PASSWORD`.
    - `ca`: the file with the certificates to trust for `https`. The default is the environment
      variable `ETCDCTL_CACERT`, or else the certificates that httpx trusts.

    Several clients may share this object. Raises ValueError or TypeError, naming the argument or
    the variable, for a value that cannot be used.
    """

    def __init__(
        self,
        prefix: str,
        endpoints: str | Iterable[str] | None = None,
        user: str | None = None,
        password: str | None = None,
        ca: str | os.PathLike[str] | None = None,
    ) -> None:
        self.prefix: str = _prefix(prefix)
        self.name: str = self.prefix.rstrip("/").rpartition("/")[2]
        self.endpoints: tuple[str, ...] = _members(endpoints)
        self.user: str | None
        self.password: str | None
        self.user, self.password = _account(user, password)
        if ca is None:
            ca = os.environ.get("ETCDCTL_CACERT") or None
        elif not isinstance(ca, str | os.PathLike):
            raise TypeError(f"ca must be a path, not {type(ca).__name__}")
        self.ca: str | None = None if ca is None else os.fspath(ca)

    def __repr__(self) -> str:
        return f"<Etcd {self if hasattr(self, 'endpoints') else ''}>"

    def __str__(self) -> str:
        return f"{self.prefix} in etcd at {', '.join(self.endpoints)}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Etcd) and self.__getstate__() == other.__getstate__()

    def __hash__(self) -> int:
        return hash((self.prefix, self.endpoints))

    def session(self) -> RegistryApi:
        """Return a new session, with the first member."""
        return RegistryApi(
            "etcd",
            self.endpoints[0],
            common_headers=_HEADERS,
            secrets=[self.password] if self.password else (),
            ca=self.ca,
            hints=_HINTS,
        )

    async def follow(self, api: RegistryApi, update: Update, alive: Alive) -> None:
        """Report all instances, and then each change, until the watch fails or is cancelled."""
        cluster = EtcdCluster(self, api)
        while True:
            await cluster.pace()
            keys = await self._list(cluster)
            update(keys.answer())
            goes_on = True
            while goes_on:
                await cluster.pace()
                goes_on = await self._follow_changes(cluster, keys, update, alive)

    async def _list(self, cluster: EtcdCluster) -> Keys:
        """Read all keys under the prefix, page by page. All pages are read at the same revision."""
        keys = Keys()
        start = self.prefix.encode()
        while True:
            document = {**self._range(start), "limit": str(_PAGE), "revision": str(keys.revision)}
            page = page_of(await cluster.call("/v3/kv/range", document))
            if not keys.revision:
                keys.cluster_id, keys.revision = page.cluster_id, page.revision
            for key, value in page.pairs:
                keys.put(key, value)
            if not page.more:
                return keys
            if not page.pairs or (last := page.pairs[-1][0]) < start:
                raise DiscoveryError(f"{cluster} sent a page of keys that does not go on")
            start = last + b"\0"

    async def _follow_changes(
        self, cluster: EtcdCluster, keys: Keys, update: Update, alive: Alive
    ) -> bool:
        """Apply changes to the keys until the watch ends.

        Returns True if a new watch may follow, and False if the keys must be listed again. Raises
        DiscoveryError if no member can be watched, or if a message cannot be used twice in a row.
        """
        document = {
            "create_request": {
                **self._range(self.prefix.encode()),
                "start_revision": str(keys.revision + 1),
                "progress_notify": True,
            }
        }
        created = False
        try:
            async with cluster.stream("/v3/watch", document) as messages:
                async for data in messages:
                    message = message_of(cluster.api.json(data))
                    if message.ended is not None:
                        raise cluster.ended(message.ended)
                    if message.compacted or (message.created and not keys.continued_by(message)):
                        return False
                    cluster.confirm()
                    created = True
                    keys.apply(message)
                    if keys.changed:
                        update(keys.answer())
                    alive()
            raise cluster.ended("")
        except DiscoveryError as error:
            if not created:
                await cluster.recover(error)
            elif not isinstance(error, LostConnection | StatusError):
                if keys.failed_after == keys.revision:  # the next watch would fail again
                    raise
                keys.failed_after = keys.revision
        return True

    def _range(self, start: bytes) -> dict[str, str]:
        """Return the range of keys from `start` to the end of the prefix."""
        return {"key": encoded(start), "range_end": encoded(_end_of(self.prefix.encode()))}


class EtcdCluster:
    """The members of a cluster, and the token for authentication. A session uses one member until
    this member fails.

    `api` may be replaced by another session.
    """

    def __init__(self, source: Etcd, api: RegistryApi) -> None:
        self._source = source
        self._member = api.rng.randrange(len(source.endpoints))
        self._token: str | None = None
        """The token; None if it is not known yet, and empty if the cluster needs none."""
        self._renewed = False
        self._failures: list[DiscoveryError] = []
        self.enter(api)

    def __str__(self) -> str:
        return str(self.api)

    def enter(self, api: RegistryApi) -> None:
        """Replace the session. The member and the token stay the same."""
        self.api = api
        self.api.url = self._source.endpoints[self._member]
        self.api.headers = self._headers

    async def pace(self) -> None:
        """Wait if the cluster is asked too often. The first list, and a watch of each member, may
        follow one another at once."""
        await self.api.pace(burst=len(self._source.endpoints) + 2)

    async def call(
        self, path: str, document: Mapping[str, Any], seconds: float = _TIMEOUT
    ) -> Mapping[str, Any]:
        """Send a request to the member in use. If it fails, send the request to the other members.
        Returns the JSON object of the response. Raises DiscoveryError."""
        until = self.api.clock() + seconds
        if self._token is None and self._source.user is not None:
            await self._authenticate(until)
        while True:
            try:
                answer = await self._post(path, document, until)
            except DiscoveryError as error:
                await self.recover(error, until)
            else:
                self.confirm()
                return answer

    def stream(self, path: str, document: Mapping[str, Any]) -> LineStream:
        """Send a request whose response has no end to the member in use."""
        silence = _SILENCE * (1 - 0.1 * self.api.rng.random())
        timeout = max(_TIMEOUT / len(self._source.endpoints), _SHORTEST)
        return self.api.stream("POST", path, json=document, silence=silence, timeout=timeout)

    def confirm(self) -> None:
        """Record that the member in use works."""
        self._failures.clear()
        self._renewed = False

    async def recover(self, error: DiscoveryError, until: float | None = None) -> None:
        """Prepare another try after a failure, with a new token or another member.

        Raises an error if there is nothing left to try.
        """
        if not _token_is_refused(str(error)) or self._renewed:
            self._use_next_member(error)
        elif self._source.user is None:
            raise DiscoveryError(f"{error}; pass user= and password=")
        else:
            self._renewed = True
            await self._authenticate(self.api.clock() + _TIMEOUT if until is None else until)

    def ended(self, reason: str) -> DiscoveryError:
        """Return the error of a watch that etcd has ended."""
        return self._error(reason, "ended the watch")

    def _error(self, reason: str, what: str) -> DiscoveryError:
        status = 401 if _token_is_refused(reason) else 403 if "permission" in reason else 503
        said = self.api.clean(reason) or "without a reason"
        return StatusError(f"{self} {what}: {said}", status)

    async def _authenticate(self, until: float) -> None:
        """Get a token."""
        self._token = None
        account = {"name": self._source.user, "password": self._source.password}
        while self._token is None:
            try:
                answer = await self._post("/v3/auth/authenticate", account, until)
                self._token = _token_of(answer)
            except DiscoveryError as error:
                if "authentication is not enabled" in str(error):
                    self._token = ""
                else:
                    self._use_next_member(error)

    async def _post(
        self, path: str, document: Mapping[str, Any], until: float
    ) -> Mapping[str, Any]:
        """Send a request to the member in use. The time that is left is divided equally among the
        members that were not tried yet, but each gets at least one second."""
        left = until - self.api.clock()
        if left <= 0:
            raise DiscoveryError(f"{self} was not asked: no time was left")
        share = left / (len(self._source.endpoints) - len(self._failures))
        seconds = min(left, max(share, _SHORTEST))
        answer = _object((await self.api.post(path, document, timeout=seconds)).json())
        if answer.get("error"):  # the gateway reports an error after the response has begun
            raise self._error(_reason(answer), f"answered {path} with an error")
        return answer

    def _use_next_member(self, error: DiscoveryError) -> None:
        """Use the next member. Raises an error if this cannot help, or if all members have failed
        in a row."""
        members = self._source.endpoints
        self._failures.append(error)
        final = isinstance(error, StatusError) and error.status in range(400, 500)
        if not final:
            self._member = (self._member + 1) % len(members)
            self.api.url = members[self._member]
            if len(self._failures) < len(members):
                return
        failures = self._failures[-1:] if final else self._failures
        self._failures = []
        raise error if len(failures) == 1 else DiscoveryError("; ".join(map(str, failures)))

    def _headers(self) -> Mapping[str, str]:
        return {"authorization": self._token} if self._token else {}


class Page(NamedTuple):
    """One page of a list. `revision` is the revision of the whole store."""

    cluster_id: str
    revision: int
    pairs: list[tuple[bytes, bytes]]
    more: bool


class Message(NamedTuple):
    """One message of a watch. An event has a key, its value (None if the key was deleted), and its
    revision.

    `compacted` is True if the watch has ended because etcd has compacted the changes that it should
    send. `ended` is the reason if the watch has ended for any other reason.
    """

    cluster_id: str = ""
    revision: int = 0
    created: bool = False
    compacted: bool = False
    ended: str | None = None
    events: Sequence[tuple[bytes, bytes | None, int]] = ()


class Keys:
    """The keys under a prefix, and the instance that each key describes."""

    def __init__(self) -> None:
        self.cluster_id: str = ""
        self.revision: int = 0
        """All changes up to this revision have been applied."""
        self.failed_after: int | None = None
        """The revision after which a message could not be used."""
        self.changed: bool = False
        """True if a key has changed since the last answer."""
        self._values: dict[bytes, bytes] = {}
        self._instances: dict[bytes, Instance] = {}
        self._refused: dict[bytes, RejectedRecord] = {}
        self._multiplicities: Counter[Instance] = Counter()

    def put(self, key: bytes, value: bytes) -> None:
        """Set the value of a key."""
        if self._values.get(key) == value:
            return
        self.remove(key)
        if len(self._values) >= _MOST_KEYS:
            raise DiscoveryError(f"etcd has more than {_MOST_KEYS} keys with the prefix")
        entry = entry_of(key, value)
        self._values[key] = value
        self.changed = True
        if isinstance(entry, Instance):
            self._instances[key] = entry
            self._multiplicities[entry] += 1
        else:
            self._refused[key] = entry

    def remove(self, key: bytes) -> None:
        """Remove a key."""
        if self._values.pop(key, None) is None:
            return
        self.changed = True
        self._refused.pop(key, None)
        if (instance := self._instances.pop(key, None)) is not None:
            self._multiplicities[instance] -= 1
            if not self._multiplicities[instance]:
                del self._multiplicities[instance]

    def continued_by(self, created: Message) -> bool:
        """Return True if a new watch continues where the last watch has ended. Otherwise the store
        was restored from a backup, or the member does not have the latest changes yet."""
        return created.cluster_id == self.cluster_id and created.revision >= self.revision

    def apply(self, message: Message) -> None:
        """Apply the events of a message.

        A message without events shows that all events up to its revision have been sent. A message
        with events does not show this, since further events may follow.
        """
        for key, value, _ in message.events:
            if value is None:
                self.remove(key)
            else:
                self.put(key, value)
        # A message whose events could not all be applied is sent again
        self.revision = max([self.revision, *(revision for _, _, revision in message.events)])
        if not message.events and not message.created:
            self.revision = max(self.revision, message.revision)

    def answer(self) -> Answer:
        """Return all instances.

        During many changes, thousands of answers are made, of which few are used. So duplicates are
        removed only if there are any.
        """
        self.changed = False
        instances = self._instances.values()
        refused = sorted_out(self._refused.values())[1]
        if len(self._multiplicities) < len(self._instances):
            return Answer(instances, None, refused)
        return answer_of_distinct(instances, refused)


def page_of(document: object) -> Page:
    """Parse a page of a list. Raises DiscoveryError."""
    answer = _object(document)
    header = _object(answer.get("header"))
    pairs = [_pair(one) for one in _of(answer, "kvs", list)]
    more = _of(answer, "more", bool)
    return Page(_of(header, "cluster_id", str), _integer(header, "revision"), pairs, more)


def message_of(document: object) -> Message:
    """Parse a message of a watch. Raises DiscoveryError."""
    answer = _object(document)
    if "result" not in answer:  # the gateway reports an error after the response has begun
        return Message(ended=_reason(answer))
    result = _object(answer["result"])
    header = _object(result.get("header"))
    compacted = _integer(result, "compact_revision") > 0
    canceled = _of(result, "canceled", bool)
    return Message(
        _of(header, "cluster_id", str),
        _integer(header, "revision"),
        _of(result, "created", bool),
        compacted,
        _of(result, "cancel_reason", str) if canceled and not compacted else None,
        [_event(one) for one in _of(result, "events", list)],
    )


def _reason(answer: Mapping[str, Any]) -> str:
    """Return the text of an error that the gateway reports in a response with status 200."""
    return _of(_object(answer.get("error")), "message", str)


def entry_of(key: bytes, value: bytes) -> Instance | RejectedRecord:
    """Parse the value of a key: `host:port`, an object as in files, or gRPC's naming object."""
    where = short(key.decode(errors="backslashreplace"))
    if len(value) > _LARGEST_VALUE:
        return RejectedRecord(where, f"its value is larger than {_LARGEST_VALUE >> 10} KiB")
    try:
        text = value.decode().strip()
        if not text.startswith("{"):
            return parsed(where, "", from_text, text)
        given = json.loads(text, object_pairs_hook=distinct_keys, parse_constant=no_number)
    except (ValueError, RecursionError):
        return RejectedRecord(where, "its value is neither host:port nor a valid JSON object")
    if "Addr" in given:
        return parsed(where, "", _from_grpc, given)
    return parsed(where, host_and_port(given), from_object, given)


def encoded(data: bytes) -> str:
    """Return bytes as text, in the encoding of etcd's gateway."""
    return base64.b64encode(data).decode()


def _from_grpc(given: Mapping[str, Any]) -> Instance:
    if given.get("Op", 0) != 0:
        raise ValueError("Op must be 0, which adds an address")
    if not isinstance(address := given["Addr"], str):
        raise TypeError("Addr must be host:port")
    if (metadata := given.get("Metadata")) is None:
        return from_text(address)
    named = metadata if isinstance(metadata, dict) else {"Metadata": metadata}
    return replace(from_text(address), metadata=named)


def _object(document: object) -> Mapping[str, Any]:
    if not isinstance(document, dict):
        raise DiscoveryError(f"etcd sent {type(document).__name__} instead of an object")
    return document


def _of(document: Mapping[str, Any], name: str, kind: type[T]) -> T:
    """Return a field of a JSON object. The gateway leaves out fields that are empty, zero or
    false."""
    if (value := document.get(name)) is None:
        return kind()
    if not isinstance(value, kind):
        raise DiscoveryError(f"etcd sent {type(value).__name__} as {name}")
    return value


def _token_of(document: Mapping[str, Any]) -> str:
    """Return the token. It is checked here, since httpx's error about a header shows the header."""
    if not (token := _of(document, "token", str)):
        return ""
    try:
        return secret("the token", token)
    except ValueError:
        raise DiscoveryError("etcd sent a token that a header cannot contain") from None


def _integer(document: Mapping[str, Any], name: str) -> int:
    text = _of(document, name, str) or "0"
    if not _INTEGER.fullmatch(text):
        raise DiscoveryError(f"etcd sent a {name} that is no number")
    return int(text)


def _bytes(document: Mapping[str, Any], name: str) -> bytes:
    try:
        return base64.b64decode(_of(document, name, str), validate=True)
    except ValueError:
        raise DiscoveryError(f"etcd sent a {name} that is not base64") from None


def _pair(document: object) -> tuple[bytes, bytes]:
    pair = _object(document)
    return _bytes(pair, "key"), _bytes(pair, "value")


def _event(document: object) -> tuple[bytes, bytes | None, int]:
    event = _object(document)
    key, value = _pair(pair := _object(event.get("kv")))
    removed = _of(event, "type", str) == "DELETE"
    return key, None if removed else value, _integer(pair, "mod_revision")


def _token_is_refused(text: str) -> bool:
    return any(one in text for one in _TOKEN_REFUSED)


def _end_of(prefix: bytes) -> bytes:
    """Return the first key after all keys with a prefix. The prefix ends in a slash."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def _prefix(given: object) -> str:
    form = "such as '/services/orders/'"
    if not isinstance(given, str):
        raise TypeError(f"prefix must be text {form}, not {type(given).__name__}")
    if not given.isprintable() or not given.strip("/"):
        raise ValueError(f"prefix must be the beginning of keys, {form}, not {given!r}")
    if not given.endswith("/"):
        raise ValueError(f"prefix must end in '/', {form}: {given!r} may begin other keys, too")
    return given


def _members(endpoints: object) -> tuple[str, ...]:
    argument = "endpoints"
    if endpoints is None:
        argument = "ETCDCTL_ENDPOINTS"
        endpoints = os.environ.get(argument) or _ENDPOINTS
    given = endpoints.split(",") if isinstance(endpoints, str) else endpoints
    members = []
    for one in validation.several(argument, given, "URLs"):
        plain = one.strip() if isinstance(one, str) else one
        if isinstance(plain, str) and "://" not in plain:
            plain = f"http://{plain}"
        members.append(registry_url(argument, plain))
    if len({url.partition(":")[0] for url in members}) != 1:
        raise ValueError(f"{argument} must be URLs of members, either all http or all https")
    return tuple(dict.fromkeys(members))


def _account(user: object, password: object) -> tuple[str | None, str | None]:
    if user is None and password is None:
        user, _, password = os.environ.get("ETCDCTL_USER", "").partition(":")
        password = password or os.environ.get("ETCDCTL_PASSWORD", "")
        if not user:
            return None, None
    elif password is None:
        password = os.environ.get("ETCDCTL_PASSWORD") or None
    return _text("user", user), _text("password", password)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be text, as user and password belong together")
    if not value:
        raise ValueError(f"{name} must not be empty")
    return value


def from_url(url: SplitResult, _query: Mapping[str, str]) -> Etcd:
    """Parse a URL such as `http+etcd:///services/orders/` or, with a member of the cluster,
    `http+etcd://10.0.0.2:2379/services/a/`."""
    try:
        return Etcd(unquote(url.path, errors="strict"), [url.netloc] if url.netloc else None)
    except ValueError as error:
        form = "'http+etcd:///services/orders/' or 'http+etcd://host:2379/services/orders/'"
        raise ValueError(f"service must be {form}: {error}") from None
