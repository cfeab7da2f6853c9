"""Where instances come from: DNS, files, lists, and a user's own resolver."""

from __future__ import annotations

from lbclient.discovery.address_filter import AddressFilter
from lbclient.discovery.composite import Composite, FirstOf, Part, Service, Union
from lbclient.discovery.dns.addresses import AddressResolver, Start, at_once
from lbclient.discovery.dns.client import Dns, dns_by
from lbclient.discovery.dns.service import DnsOptions, DnsService, Family
from lbclient.discovery.dns.srv import SrvResolver
from lbclient.discovery.file import FileResolver
from lbclient.discovery.resolver import Resolver, StaticResolver, text_of

__all__ = [
    "AddressFilter",
    "AddressResolver",
    "Composite",
    "Dns",
    "DnsOptions",
    "DnsService",
    "Family",
    "FileResolver",
    "FirstOf",
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
