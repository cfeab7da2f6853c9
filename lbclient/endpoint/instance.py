"""Instance and Answer: the plain values that a resolver returns."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from types import MappingProxyType
from urllib.parse import urlsplit

from lbclient._internal import validation

__all__ = [
    "DEFAULT_PORTS",
    "Answer",
    "Instance",
    "InstanceHeaders",
    "Refusal",
    "RejectedRecord",
    "answer_of_distinct",
    "identity_of",
]

DEFAULT_PORTS = {"http": 80, "https": 443}

_NO_METADATA: Mapping[str, object] = MappingProxyType({})
_VALUE = re.compile(r"[!-~](?:[\t -~]*[!-~])?|")
_PATH = re.compile(r"(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*)*")
_DOTS = re.compile(r"/(?:\.|%2e){1,2}(?:/|$)", re.IGNORECASE)
_OF_CONNECTIONS = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers whose values depend on the request or the connection, so they cannot be set for an
instance."""


class InstanceHeaders(Mapping[str, str]):
    """The headers of an instance. Names are case-insensitive. `repr` shows no values, since values
    may be secret."""

    __slots__ = ("_pairs",)

    def __init__(self, given: Mapping[str, str]) -> None:
        """Raises ValueError or TypeError for headers that cannot be sent. Errors show no values."""
        if not isinstance(given, Mapping):
            kind = type(given).__name__  # type: ignore[unreachable]  # callers may be untyped
            raise TypeError(f"headers must be a dict of names and values, not {kind}")
        self._pairs: dict[str, tuple[str, str]] = {}
        for name, value in given.items():
            if not validation.token(name):
                shown = repr(name) if isinstance(name, str) else type(name).__name__
                raise ValueError(f"headers must have HTTP header names, not {shown}")
            if not isinstance(value, str):
                kind = type(value).__name__  # type: ignore[unreachable]  # as above
                raise TypeError(f"headers: the value of {name} must be text, not {kind}")
            if not _VALUE.fullmatch(value):
                raise ValueError(
                    f"headers: the value of {name} must be printable ASCII, without spaces or "
                    "line breaks at its ends"
                )
            lower = name.lower()
            if lower in _OF_CONNECTIONS:
                raise ValueError(
                    f"headers must not contain {name}, which depends on each request or connection"
                )
            if lower in self._pairs:
                raise ValueError(f"headers must contain {name} once, in upper or lower case")
            if lower == "host" and not _is_authority(value):
                raise ValueError(
                    f"headers: the value of {name} must be a host, perhaps with a port"
                )
            self._pairs[lower] = name, value

    def __getitem__(self, name: str) -> str:
        return self._pairs[name.lower()][1]

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._pairs.values())

    def __len__(self) -> int:
        return len(self._pairs)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        return self.lowered() == {str(name).lower(): value for name, value in other.items()}

    def __hash__(self) -> int:
        return hash(frozenset(self._pairs))

    def __repr__(self) -> str:
        return f"<headers {', '.join(self)}>" if self._pairs else "{}"

    def lowered(self) -> dict[str, str]:
        """Return the headers with names in lower case, as they are sent."""
        return {lower: value for lower, (_, value) in self._pairs.items()}


def _is_authority(text: str) -> bool:
    try:
        parts = urlsplit(f"//{text}")
        validation.host("host", parts.hostname or "")
        port = parts.port
    except ValueError:
        return False
    return parts.netloc == text and "@" not in text and port != 0


_NO_HEADERS = InstanceHeaders({})


@dataclass(frozen=True, slots=True, repr=False)
class Instance:
    """One process of a service. Two instances are equal if they have the same `host`, `port`,
    `scheme`, `path`, `headers` and `tls_name`.

    - `weight`: its share of the traffic, relative to the other instances. A weight of 0 is treated
      as 0.1; if all weights are 0, all instances get the same share.
    - `priority`: its tier. Instances with a lower value serve first (RFC 2782).
    - `metadata`: any other data about the instance, such as its zone.
    - `addresses`: the IP addresses that discovery has checked, tried in order. If there are none,
      the operating system resolves `host` at each connect. `address` is the address to connect to.
    - `scheme`: `"http"` or `"https"`; None means the service's scheme.
    - `path`: the base path, such as `"/openai/v1"`, which is put before the path of each request.
    - `headers`: headers that are sent only to this instance, with each request, for example its API
      key. They replace the caller's headers with the same name. `Host` may be one of them. No
      `repr`, error, log, span or snapshot shows the values.
    - `tls_name`: the name that TLS sends and verifies; None means the service's name, or `host` if
      the service has no name.

    Raises ValueError or TypeError, naming the field, for a value that no instance can have.
    """

    host: str
    port: int
    weight: float = field(default=1, compare=False)
    priority: int = field(default=0, compare=False)
    metadata: Mapping[str, object] = field(default_factory=dict, compare=False)
    addresses: tuple[str, ...] = field(default=(), compare=False)
    scheme: str | None = field(default=None, kw_only=True)
    path: str = field(default="", kw_only=True)
    headers: Mapping[str, str] = field(default=_NO_HEADERS, kw_only=True, hash=False)
    tls_name: str | None = field(default=None, kw_only=True)

    @classmethod
    def from_url(
        cls,
        url: str,
        weight: float = 1,
        priority: int = 0,
        metadata: Mapping[str, object] = _NO_METADATA,
        *,
        addresses: Iterable[str] = (),
        headers: Mapping[str, str] = _NO_HEADERS,
        tls_name: str | None = None,
    ) -> Instance:
        """Return the instance of a URL. A URL such as `"https://eu.example.com/openai/v1"` has a
        scheme, a host, possibly a port, and a base path. The other arguments are those of
        `Instance`.

        Raises ValueError or TypeError, naming the argument, for a URL or a value that no instance
        can have.
        """
        scheme, host, port, path = _parts(url)
        return cls(
            host,
            port,
            weight,
            priority,
            metadata,
            tuple(addresses) if isinstance(addresses, Iterable) else addresses,
            scheme=scheme,
            path=path,
            headers=headers,
            tls_name=tls_name,
        )

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "host", validation.host("host", self.host))
        validation.port("port", self.port)
        validation.number("weight", self.weight)
        validation.count("priority", self.priority, least=0)
        if not isinstance(self.metadata, Mapping):
            raise TypeError(f"metadata must be a dict, not {self.metadata!r}")
        given = MappingProxyType(dict(self.metadata)) if self.metadata else _NO_METADATA
        put(self, "metadata", given)
        addresses = validation.several("addresses", self.addresses, "IP addresses")
        put(self, "addresses", tuple(validation.address("addresses", one) for one in addresses))
        if self.scheme is not None:
            validation.one_of("scheme", self.scheme, DEFAULT_PORTS)
        if self.path != "":
            put(self, "path", _base_path(self.path))
        if type(self.headers) is not InstanceHeaders:
            headers = _NO_HEADERS if self.headers == {} else InstanceHeaders(self.headers)
            put(self, "headers", headers)
        if self.tls_name is not None:
            put(self, "tls_name", validation.host("tls_name", self.tls_name))

    @property
    def address(self) -> str:
        """The address to connect to: the first of `addresses`, or `host` if there are none.

        Connect to this address and not to `host`: a name would be resolved again, and DNS may
        answer with an address that was never checked. IPv6 addresses have no brackets.
        """
        return self.addresses[0] if self.addresses else self.host

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __repr__(self) -> str:
        shown = ["host", "port", "weight", "priority"]
        shown += [name for name in ("scheme", "path", "headers", "tls_name") if getattr(self, name)]
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)
        return f"{type(self).__qualname__}({values})"

    def __reduce__(self) -> tuple[Callable[..., Instance], tuple[object, ...]]:
        fields = (self.host, self.port, self.weight, self.priority)
        own = partial(
            Instance,
            scheme=self.scheme,
            path=self.path,
            headers=dict(self.headers),
            tls_name=self.tls_name,
        )
        return own, (*fields, dict(self.metadata), self.addresses)


def identity_of(instance: Instance) -> str:
    """Return a text that identifies the instance, as the input of a hash function. It is the same
    in every process. It differs between instances with different base paths or headers. Do not show
    this text, since it depends on the values of headers."""
    text = f"{instance}{instance.path}"
    if not instance.headers:
        return text
    pairs = repr(sorted(instance.headers.items())).encode()
    return f"{text} {blake2b(pairs, digest_size=16).hexdigest()}"


def _base_path(path: object) -> str:
    """Check a base path. Returns it without the final slash."""
    if not isinstance(path, str):
        raise TypeError(f"path must be text such as '/openai/v1', not {validation.shown(path)}")
    if "?" in path or "#" in path:  # the text after `?` or `#` may be secret
        raise ValueError("path must not contain a query or a fragment")
    if not path.startswith("/") or path.startswith("//") or not _PATH.fullmatch(path):
        raise ValueError(
            "path must begin with one '/' and hold the characters of a URL's path "
            f"(percent-encode others), not {path!r}"
        )
    if _DOTS.search(path):
        raise ValueError(f"path must not contain '.' or '..' as a segment, not {path!r}")
    return path.rstrip("/")


def _parts(url: object) -> tuple[str, str, int, str]:
    """Return the scheme, host, port and path of a URL. No error shows a part that may be secret."""
    form = "such as 'https://eu.example.com/openai/v1'"
    if not isinstance(url, str):
        raise TypeError(f"url must be text {form}, not {type(url).__name__}")
    if any(char <= " " or char == "\x7f" for char in url):
        raise ValueError("url must be a URL without spaces or control characters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # the text of the error may contain a password
        raise ValueError("url must be a URL whose port, if any, is from 1 to 65535") from None
    if parts.scheme not in DEFAULT_PORTS:
        raise ValueError(f"url must be an http or https URL {form}, not {validation.bare(url)!r}")
    if "@" in parts.netloc:
        raise ValueError("url must not contain a user name or password; pass headers= instead")
    if "?" in url or "#" in url:
        raise ValueError("url must not contain a query or a fragment")
    host = validation.host("url (its host)", parts.hostname or "")
    if port == 0:
        raise ValueError("url must have a port from 1 to 65535, not 0")
    return parts.scheme, host, port or DEFAULT_PORTS[parts.scheme], parts.path


@dataclass(frozen=True, slots=True)
class RejectedRecord:
    """A record that discovery did not use, and the reason for this. `record` is escaped for logs
    and screens."""

    record: str
    reason: str


Refusal = RejectedRecord
"""An alias: the name of `RejectedRecord` in version 0.1.0."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a `Resolver`: the full set of instances, valid for `ttl` seconds.

    `ttl=None` means that the set never changes. If there are two entries for one instance, the
    entry with the lower priority is used; if the priorities are equal, the entry with the larger
    weight. `refused` lists the records that were left out.
    """

    instances: tuple[Instance, ...]
    ttl: float | None = None
    refused: tuple[RejectedRecord, ...] = ()

    def __init__(
        self,
        instances: Iterable[Instance],
        ttl: float | None = None,
        refused: Iterable[RejectedRecord] = (),
    ) -> None:
        put = object.__setattr__
        put(self, "instances", _distinct(instances))
        put(self, "ttl", None if ttl is None else validation.number("ttl (seconds)", ttl))
        put(self, "refused", tuple(refused))


def answer_of_distinct(
    instances: Iterable[Instance], refused: Iterable[RejectedRecord] = ()
) -> Answer:
    """Return an answer with instances that are known to differ. This takes a fiftieth of the time
    of the constructor, which compares all instances."""
    answer = object.__new__(Answer)
    for name, value in (("instances", instances), ("refused", refused)):
        object.__setattr__(answer, name, tuple(value))
    object.__setattr__(answer, "ttl", None)
    return answer


def _distinct(instances: Iterable[Instance]) -> tuple[Instance, ...]:
    best: dict[Instance, Instance] = {}
    for instance in validation.several("instances", instances, "lbclient.Instance values"):
        if not isinstance(instance, Instance):
            kind = validation.shown(instance)
            raise TypeError(f"instances must contain lbclient.Instance values, not {kind}")
        known = best.setdefault(instance, instance)
        if known is instance:  # true for nearly all instances, which may be thousands
            continue
        if (instance.priority, -instance.weight) < (known.priority, -known.weight):
            best[instance] = instance
    return tuple(best.values())
