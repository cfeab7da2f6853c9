"""Where instances come from. The only folder with dnspython, and the only one with threads."""

from __future__ import annotations

from lbclient.discovery.addresses import AddressResolver
from lbclient.discovery.composite import Composite, FirstOf, Part, Service, Union
from lbclient.discovery.dns import Dns
from lbclient.discovery.file import FileResolver
from lbclient.discovery.guard import Guard
from lbclient.discovery.nameservers import nameservers_of
from lbclient.discovery.resolver import Resolver
from lbclient.discovery.srv import SrvResolver
from lbclient.discovery.static import StaticResolver
from lbclient.discovery.words import text_of

__all__ = [
    "AddressResolver",
    "Composite",
    "Dns",
    "FileResolver",
    "FirstOf",
    "Guard",
    "Part",
    "Resolver",
    "Service",
    "SrvResolver",
    "StaticResolver",
    "Union",
    "nameservers_of",
    "text_of",
]
