"""Where instances come from. The only folder with dnspython, and the only one with threads."""

from __future__ import annotations

from lbclient.discovery.addresses import AddressResolver, Start, at_once
from lbclient.discovery.composite import Composite, FirstOf, Part, Service, Union
from lbclient.discovery.dns import Dns, dns_by
from lbclient.discovery.file import FileResolver
from lbclient.discovery.guard import Guard
from lbclient.discovery.resolver import Resolver
from lbclient.discovery.service import DnsOptions, DnsService, Family
from lbclient.discovery.srv import SrvResolver
from lbclient.discovery.static import StaticResolver
from lbclient.discovery.words import text_of

__all__ = [
    "AddressResolver",
    "Composite",
    "Dns",
    "DnsOptions",
    "DnsService",
    "Family",
    "FileResolver",
    "FirstOf",
    "Guard",
    "Part",
    "Resolver",
    "Service",
    "SrvResolver",
    "Start",
    "StaticResolver",
    "Union",
    "at_once",
    "dns_by",
    "text_of",
]
