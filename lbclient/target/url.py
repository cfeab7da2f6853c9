"""A service's URL, checked: no error repeats what may be secret."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

from lbclient import checks

__all__ = ["DEFAULT_PORTS", "FORMS", "authority_of", "host_of", "path_of", "shown", "split"]

DEFAULT_PORTS = {"http": 80, "https": 443}
FORMS = (
    "'http+srv://name', 'https+srv://name', 'http+dns://name:port', 'https+dns://name:port', "
    "'http+file:///path', 'https+file:///path', 'http://host:port', 'https://host:port', "
    "a list of the latter, a list of lbclient.Instance, lbclient.FirstOf(...), "
    "lbclient.Union(...), or an object with resolve() -> Answer"
)


def split(text: str) -> SplitResult:
    """The parts of a URL that can name a service. Raises ValueError for any other."""
    if any(char <= " " or char == "\x7f" for char in text):
        raise ValueError("service must be a URL without spaces or control characters")
    if "://" not in text:
        raise ValueError(f"service must be one of {FORMS}; {checks.bare(text)!r} has no scheme")
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:  # whose text may repeat a password
        raise ValueError("service must be a URL whose port, if any, is from 1 to 65535") from None
    if "@" in url.netloc:
        raise ValueError("service must not hold user name or password; pass auth= instead")
    if port == 0:
        raise ValueError(f"service must have a port from 1 to 65535, not 0 ({shown(url)!r})")
    if url.query or url.fragment:
        raise ValueError("service must not hold a query or a fragment; pass params= instead")
    return url


def host_of(url: SplitResult) -> str:
    """Its host. Raises ValueError where it has none that is legal."""
    return checks.host("service (its host)", url.hostname or "")


def path_of(url: SplitResult) -> str:
    """Its base path, without final slash."""
    return url.path.rstrip("/")


def shown(url: SplitResult) -> str:
    """Without userinfo and query: they may be secret."""
    return f"{url.scheme}://{checks.bare(url.netloc + url.path)}"


def authority_of(host: str, port: int, scheme: str) -> str:
    """What Host says of it: without the scheme's own port."""
    bracketed = f"[{host}]" if ":" in host else host
    return bracketed if port == DEFAULT_PORTS[scheme] else f"{bracketed}:{port}"
