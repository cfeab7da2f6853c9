"""Where instances come from. The only folder with dnspython, and the only one with threads."""

from __future__ import annotations

from lbclient.discovery.addresses import AddressResolver
from lbclient.discovery.dns import Dns, nameservers_of
from lbclient.discovery.guard import Guard
from lbclient.discovery.resolver import Resolver
from lbclient.discovery.srv import SrvResolver
from lbclient.discovery.static import StaticResolver
from lbclient.discovery.words import text_of

__all__ = [
    "AddressResolver",
    "Dns",
    "Guard",
    "Resolver",
    "SrvResolver",
    "StaticResolver",
    "nameservers_of",
    "text_of",
]
