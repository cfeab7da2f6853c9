"""LoadProbe: how instances are asked for their load, beside the calls."""

from __future__ import annotations

import re
from dataclasses import KW_ONLY, dataclass, field

from lbclient import checks

__all__ = ["LoadProbe"]

_PATH = re.compile(r"/[!\"$-~]*")


@dataclass(frozen=True, slots=True)
class LoadProbe:
    """Random instances are asked for their load (`LoadReport`) in the background, the more the
    more calls there are; without calls, nobody is. By clients and transports, over HTTP.

    - `path`: what to GET. An answer of any status counts by its load header alone
      (`endpoint-load-metrics`); who sends none offers none.
    - `rate`: probes for each answer to a call, on average; 16 are under way at the most.
    - `interval`: seconds from one round of probes to the next.
    - `timeout`: seconds for one probe.

    Source: the asynchronous probes of Prequal (NSDI 2024): three for each call, and one second.

    Raises ValueError or TypeError, naming the argument, for what cannot be used.
    """

    path: str = field(repr=False)  # a query may hold a secret
    _: KW_ONLY
    rate: float = 3.0
    interval: float = 0.1
    timeout: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.path, str):
            raise TypeError(f"path must be text such as '/load', not {self.path!r}")
        if not _PATH.fullmatch(self.path):
            shown = self.path.partition("?")[0]
            raise ValueError(
                "path must begin with '/' and hold printable ASCII without spaces or '#', "
                f"not {shown!r}"
            )
        checks.number("rate (probes for each call)", self.rate, above=True)
        checks.seconds("interval", self.interval)
        checks.seconds("timeout", self.timeout)
