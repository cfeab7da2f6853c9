"""Parses the argument `service` of a user into a name, an origin and a resolver.

`URL_SOURCES` is the registry of URL schemes. A new source of discovery needs one file with a
function `from_url`, and one entry in this registry.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import NamedTuple
from urllib.parse import SplitResult, parse_qsl, urlsplit

from lbclient._internal import validation
from lbclient.discovery import file
from lbclient.discovery.address_filter import AddressFilter
from lbclient.discovery.composite import Composite, Part
from lbclient.discovery.dns import service as dns_service
from lbclient.discovery.dns.addresses import Start, at_once
from lbclient.discovery.dns.client import Dns
from lbclient.discovery.dns.service import DnsOptions
from lbclient.discovery.file import FileResolver
from lbclient.discovery.pushed.addresses import AddressChecker
from lbclient.discovery.resolver import Resolver, StaticResolver, Watcher
from lbclient.discovery.scheduler import THREAD_SCHEDULER, Scheduler
from lbclient.discovery.service_url import (
    DEFAULT_PORTS,
    HTTP,
    ParsedService,
    Sources,
    authority_of,
    host_of,
    path_of,
    shown,
)
from lbclient.discovery.watched import BackgroundWatcher, ThreadWatcher, WatchedResolver
from lbclient.endpoint.instance import Instance

__all__ = ["URL_SOURCES", "Target", "UrlSource", "target_of"]


class UrlSource(NamedTuple):
    """A kind of URL that names a service.

    - `from_url(url, scheme, sources)` parses such a URL. It gets the URL, its scheme (`"http"` or
      `"https"`), and the objects that it needs to build a resolver. It raises ValueError, naming
      `service`, for a URL that it cannot use.
    - `rest` describes, for error texts, the text after `http+kind://`.
    - `keys` are the keys that the query may have, each once.
    - `named_port`: the port may be a name.
    """

    from_url: Callable[[SplitResult, str, Sources], ParsedService]
    rest: str
    keys: tuple[str, ...] = ()
    named_port: bool = False


def pushed(
    name: str, *, base_path: bool = True
) -> Callable[[SplitResult, str, Sources], ParsedService]:
    """Return a function `from_url` for a registry that reports changes. It imports the module
    `discovery.pushed.NAME` when it is first needed. This module has a function `from_url(url,
    query)` that returns the watcher. If `base_path` is True, the path of the URL is the base path
    of all instances."""

    def from_url(url: SplitResult, scheme: str, sources: Sources) -> ParsedService:
        module = import_module(f"lbclient.discovery.pushed.{name}")
        watcher = module.from_url(url, dict(parse_qsl(url.query, keep_blank_values=True)))
        return _watched(watcher, sources, scheme, path_of(url) if base_path else None)

    return from_url


URL_SOURCES: dict[str, UrlSource] = {
    "srv": UrlSource(dns_service.srv_from_url, "name"),
    "dns": UrlSource(dns_service.addresses_from_url, "name:port"),
    "file": UrlSource(file.from_url, "/path"),
    "consul": UrlSource(pushed("consul"), "name", keys=("tag", "dc", "near", "passing")),
    "etcd": UrlSource(pushed("etcd", base_path=False), "/prefix/"),
    "k8s": UrlSource(pushed("kubernetes"), "service.namespace:port", named_port=True),
}
"""The kinds of URL, by the text after the plus sign: `http+srv://orders.example.com`."""


def _split(text: str, schemes: Sequence[str]) -> SplitResult:
    """Split the URL of a service into its parts. Raises ValueError if it cannot be the URL of a
    service."""
    if any(char <= " " or char == "\x7f" for char in text):
        raise ValueError("service must be a URL without spaces or control characters")
    if "://" not in text:
        bare = validation.bare(text)
        raise ValueError(f"service must be one of {_forms(schemes)}; {bare!r} has no scheme")
    try:
        url = urlsplit(text)
        source = URL_SOURCES.get(url.scheme.partition("+")[2])
        port = None if source and source.named_port else url.port
    except ValueError:  # the text of the error may contain a password
        raise ValueError("service must be a URL whose port, if any, is from 1 to 65535") from None
    if "@" in url.netloc:
        raise ValueError("service must not contain a user name or password; pass auth= instead")
    if port == 0:
        raise ValueError(f"service must have a port from 1 to 65535, not 0 ({shown(url)!r})")
    if url.query and source and source.keys:
        _check_query(url, source.keys)
    elif url.query or url.fragment:
        raise ValueError("service must not contain a query or a fragment; pass params= instead")
    return url


def _check_query(url: SplitResult, keys: Sequence[str]) -> None:
    """Raise ValueError if a query does not consist of some of these keys, each once."""
    choices = ", ".join(keys)
    if url.fragment:
        raise ValueError("service must not contain a fragment")
    seen: set[str] = set()
    try:
        pairs = parse_qsl(url.query, keep_blank_values=True, strict_parsing=True)
    except ValueError:  # the text of the error may contain a secret
        raise ValueError(
            f"service must have a query such as 'key=value&key=value'; the keys are {choices}"
        ) from None
    for key, _ in pairs:
        if key not in keys:
            raise ValueError(
                f"service has an unknown key {validation.bare(key)!r} in its query; "
                f"the keys are {choices}"
            )
        if key in seen:
            raise ValueError(f"service must have {key!r} once in its query; the keys are {choices}")
        seen.add(key)


@dataclass(frozen=True, slots=True)
class Target:
    """The argument `service`, parsed.

    - `name`: for logs, spans and errors.
    - `scheme`: `"http"` or `"https"`, for instances that have no scheme of their own; for gRPC
      `"grpc"` or `"grpcs"`.
    - `authority`: the value of the Host header, or None if each instance has its own Host.
    - `host`: the name that TLS verifies, or None if each instance has its own name.
    - `origin`: the logical URL, without a path; `path`: the base path of all instances.
    - `resolver`: finds the instances.
    - `listed`: the instances that the service itself lists.
    - `named`: True if the caller has named the service, so that the name applies to every instance.
    - `watched`: the resolvers of the service, or of its parts, that are watched.
    """

    name: str
    scheme: str
    authority: str | None
    host: str | None
    origin: str
    path: str
    resolver: Resolver
    listed: tuple[Instance, ...] = ()
    named: bool = False
    watched: tuple[WatchedResolver, ...] = ()

    def scheme_of(self, instance: Instance) -> str:
        """Return the scheme by which an instance is called."""
        return instance.scheme or self.scheme

    def is_separate(self, instance: Instance) -> bool:
        """Return True if an instance has its own Host and TLS name, and not those of the service.

        An instance with a scheme of its own was given as a URL, for example as a fallback beside a
        service in DNS.
        """
        return self.host is None or (instance.scheme is not None and not self.named)

    def authority_at(self, instance: Instance) -> str:
        """Return the value of the Host header of requests to an instance."""
        if (own := instance.headers.get("host")) is not None:
            return own
        if self.authority is not None and not self.is_separate(instance):
            return self.authority
        return authority_of(instance.host, instance.port, self.scheme_of(instance))


def target_of(
    service: object,
    *,
    name: str | None,
    scheme: str,
    dns: Dns,
    address_filter: AddressFilter,
    clock: Callable[[], float],
    options: DnsOptions = DnsOptions(),  # noqa: B008  # a frozen value
    start: Start = at_once,
    scheduler: Scheduler = THREAD_SCHEDULER,
    rng: random.Random | None = None,
    schemes: Sequence[str] = HTTP,
) -> Target:
    """Parse the user's argument `service`. `start` runs each question to DNS; `scheduler` and `rng`
    are for watches. `schemes` are the two schemes of the protocol: without TLS, and with TLS.

    Raises ValueError or TypeError that names the argument and the known forms.
    """
    validation.one_of("scheme", scheme, schemes)
    alias = None if name is None else validation.host("name", name)
    rng = random.Random() if rng is None else rng  # noqa: S311  # not for secrets
    sources = Sources(dns, address_filter, clock, options, start, scheduler, rng, schemes)
    parsed = _read(service, sources)
    if not parsed.in_dns:
        options.refuse(parsed.shown)
    scheme = _agreed(scheme, parsed.scheme, schemes[0])
    # Cookies and URLs are treated as secure only if every instance uses TLS.
    own = {one.scheme or scheme for one in parsed.listed} if parsed.unlike else {scheme}
    logical = schemes[0] if schemes[0] in own else schemes[1]
    authority = None
    if (host := alias or parsed.host) is not None:
        shown, authority = host, authority_of(host, parsed.port or DEFAULT_PORTS[scheme], scheme)
        origin = authority
    else:
        shown, origin = _nameless(parsed, scheme)
    return Target(
        name=shown,
        scheme=scheme,
        authority=authority,
        host=host,
        origin=f"{logical}://{origin}",
        path=parsed.path or "",
        resolver=parsed.resolver,
        listed=parsed.listed,
        named=alias is not None,
        watched=parsed.watched,
    )


def _read(service: object, sources: Sources) -> ParsedService:
    """Parse a service.

    Raises ValueError or TypeError that names the argument and the known forms.
    """
    if isinstance(service, str):
        return _from_url(service, sources)
    if isinstance(service, Composite):
        return _from_parts(service, sources)
    if isinstance(service, FileResolver):
        return ParsedService(service, str(service))
    if isinstance(service, os.PathLike):
        raise TypeError("service must not be a path alone; pass lbclient.FileResolver(path)")
    if isinstance(service, Resolver) and not isinstance(service, type):
        return ParsedService(service, type(service).__name__)
    if isinstance(service, BackgroundWatcher | Watcher) and not isinstance(service, type):
        if not isinstance(service, BackgroundWatcher):
            service = ThreadWatcher(service)
        return _watched(service, sources)
    if isinstance(service, bytes | bytearray) or not isinstance(service, Iterable):
        raise TypeError(f"service must be one of {_forms(sources.schemes)}; not {_kind(service)}")
    return _from_list(list(service), sources.schemes)


def _watched(
    watcher: BackgroundWatcher,
    sources: Sources,
    scheme: str | None = None,
    path: str | None = None,
) -> ParsedService:
    """Make a service from a watcher. The name of the watcher is its host, unless no host can have
    this name, or it is only the name of a user's class. The addresses in the answers of a registry
    are checked."""
    resolver = WatchedResolver(
        watcher, clock=sources.clock, rng=sources.rng, scheduler=sources.scheduler
    )
    host = None
    if not isinstance(watcher, ThreadWatcher):
        dns, address_filter, clock, _, start, *_ = sources
        resolver.checker = AddressChecker(dns, address_filter, clock, start, resolver.tell)
        with contextlib.suppress(ValueError):
            host = validation.host("name", watcher.name)
    return ParsedService(resolver, watcher.name, scheme, path, host, watched=(resolver,))


def _from_url(service: str, sources: Sources) -> ParsedService:
    url = _split(service, sources.schemes)
    scheme, plus, kind = url.scheme.partition("+")
    if scheme not in sources.schemes or (plus and kind not in URL_SOURCES):
        forms = _forms(sources.schemes)
        raise ValueError(f"service must be one of {forms}; {shown(url)!r} is none of them")
    if plus:
        return URL_SOURCES[kind].from_url(url, scheme, sources)
    return _from_urls([url], sources.schemes)


def _forms(schemes: Sequence[str]) -> str:
    """Describe the forms that `service` may have, for error texts."""
    urls = [f"+{kind}://{source.rest}" for kind, source in URL_SOURCES.items()]
    urls.append("://host:port")
    shown_urls = ", ".join(f"'{scheme}{one}'" for one in urls for scheme in schemes)
    return (
        f"{shown_urls}, a list of the latter, a list of lbclient.Instance, lbclient.FirstOf(...), "
        "lbclient.Union(...), an object with resolve() -> Answer, or an object with "
        "watch(update, alive) and close()"
    )


def _from_list(items: Sequence[object], schemes: Sequence[str]) -> ParsedService:
    if not items:
        raise ValueError("service must not be an empty list")
    instances = [one for one in items if isinstance(one, Instance)]
    if len(instances) == len(items):
        return _of_instances(instances)
    if not all(isinstance(one, str) for one in items):
        kinds = ", ".join(dict.fromkeys(map(_kind, items)))
        raise TypeError(f"service must be one of {_forms(schemes)}; not a list of {kinds}")
    return _from_urls([_split(str(one), schemes) for one in items], schemes)


def _from_urls(urls: Sequence[SplitResult], schemes: Sequence[str]) -> ParsedService:
    """Parse a list of URLs. If all URLs have the same scheme and base path, these are the scheme
    and path of the service. Otherwise each instance has a scheme and a path of its own."""
    for url in urls:
        if url.scheme not in schemes:
            raise ValueError(
                f"service must be one of {_forms(schemes)}; {shown(url)!r} cannot be in a list; "
                "use lbclient.Union(...) to combine services"
            )
    found = [Instance(host_of(url), url.port or DEFAULT_PORTS[url.scheme]) for url in urls]
    forms = {(url.scheme, path_of(url)) for url in urls}
    if len(forms) > 1:
        return _of_instances([_owning(*pair) for pair in zip(found, urls, strict=True)])
    return _static(found, *forms.pop())


def _owning(instance: Instance, url: SplitResult) -> Instance:
    try:
        return replace(instance, scheme=url.scheme, path=url.path)
    except ValueError as error:
        raise ValueError(f"service must be a list of valid URLs: {error}") from None


def _of_instances(instances: Sequence[Instance]) -> ParsedService:
    """Parse a list of instances. If all have the same scheme and base path, these are the scheme
    and path of the service."""
    forms = {(one.scheme, one.path) for one in instances}
    if len(forms) > 1:
        return _static(instances, None, None, unlike=True)
    ((scheme, path),) = forms
    return _static(instances, scheme, path or None)


def _static(
    instances: Sequence[Instance], scheme: str | None, path: str | None, *, unlike: bool = False
) -> ParsedService:
    resolver = StaticResolver(instances)
    return ParsedService(
        resolver,
        str(instances[0]),
        scheme,
        path,
        first=instances[0],
        listed=resolver.resolve().instances,
        unlike=unlike,
    )


def _from_parts(service: Composite, sources: Sources) -> ParsedService:
    """Parse a composite. The scheme and the path come from the parts that have one, and the name
    comes from the first part. If lists differ in scheme or path, each instance gets the scheme and
    path of its own list. This also happens to a list whose instances have schemes of their own, if
    another part of the composite has a different scheme or path."""
    parts = [_read(one, sources) for one in service.services]
    forms = {(one.scheme, one.path or "") for one in parts}
    unlike = any(one.unlike for one in parts)
    if unlike or len(forms) > 1:
        lists = unlike or len(forms - {(None, "")}) > 1
        lists = lists and all(one.first is not None for one in parts if one.scheme or one.path)
        parts = [_separate(one) if one.first and (lists or _own(one)) else one for one in parts]
        unlike = unlike or any(one.unlike for one in parts)
    path = _common("base path", (one.path for one in parts))
    if unlike and path:
        raise ValueError(f"service must have no base path ({path}) if a list in it has several")
    named = next((one for one in parts if one.host is not None), parts[0])
    return ParsedService(
        service.over([Part(one.shown, one.resolver) for one in parts], sources.clock),
        f"{type(service).__name__}({', '.join(one.shown for one in parts)})",
        _common("scheme", (one.scheme for one in parts)),
        path,
        named.host,
        named.port,
        in_dns=any(one.in_dns for one in parts),
        listed=tuple(instance for one in parts for instance in one.listed),
        unlike=unlike,
        watched=tuple(watched for one in parts for watched in one.watched),
    )


def _separate(part: ParsedService) -> ParsedService:
    """Give each instance of a list the scheme and path that all of them share."""
    own = [
        replace(one, scheme=one.scheme or part.scheme, path=one.path or part.path or "")
        for one in part.listed
    ]
    resolver = StaticResolver(own)
    return replace(part, resolver=resolver, scheme=None, path=None, listed=tuple(own), unlike=True)


def _own(part: ParsedService) -> bool:
    """Return True for a list of instances that have schemes of their own."""
    return all(one.scheme is not None for one in part.listed)


def _common(what: str, values: Iterable[str | None]) -> str | None:
    """Return the value that the parts have in common. Parts without a value are ignored. Raises
    ValueError if two values differ."""
    known = {value for value in values if value is not None}
    if len(known) > 1:
        listed = ", ".join(one or "/" for one in sorted(known))
        raise ValueError(f"service must have one {what} for all: {listed}")
    return known.pop() if known else None


def _agreed(scheme: str, of_url: str | None, default: str) -> str:
    """Combine the argument `scheme=` with the scheme of the URL. The default value of `scheme=`
    fits both schemes."""
    if of_url is not None and scheme not in (default, of_url):
        raise ValueError(f"scheme={scheme!r} contradicts the URL, which says {of_url!r}")
    return of_url or scheme


def _nameless(parsed: ParsedService, scheme: str) -> tuple[str, str]:
    """Make a name for a service without one, for logs and for the host of its logical URL.

    Instances with different schemes or paths have no common URL, and the URL of one of them would
    contain its own base path.
    """
    if parsed.first is None or parsed.unlike:
        resolver = parsed.resolver
        kind = resolver.kind if isinstance(resolver, WatchedResolver) else type(resolver).__name__
        return parsed.shown, f"{kind.lower()}.invalid"
    first = authority_of(parsed.first.host, parsed.first.port, scheme)
    return first, first


def _kind(value: object) -> str:
    """Describe a value by its type only, since its content may be secret."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
