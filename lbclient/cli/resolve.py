"""`lbclient resolve`: what discovery returns for a service, and what it refused."""

from __future__ import annotations

import argparse
import contextlib
import sys

import lbclient
from lbclient.cli.report import as_arguments, picture
from lbclient.cli.watch import watch
from lbclient.discovery.dns.service import DnsService
from lbclient.discovery.registry import Target

__all__ = ["resolve"]


def resolve(arguments: argparse.Namespace) -> int:
    """Ask discovery, and print the answer: once, or repeatedly with `watch`.

    The exit status is 1 if there is no usable instance, and 2 for invalid arguments.
    """
    try:
        balancer = _balancer(arguments)
    except (ValueError, ImportError) as error:
        print(f"lbclient resolve: {as_arguments(str(error))}", file=sys.stderr)
        return 2
    with contextlib.closing(balancer):
        if not arguments.watch:
            return _once(balancer.target)
        watch(balancer.target.name, balancer.target.resolver)
    return 0


def _balancer(arguments: argparse.Namespace) -> lbclient.Balancer:
    service: list[str] = arguments.service
    return lbclient.Balancer(
        service[0] if len(service) == 1 else service,
        nameservers=arguments.nameserver,
        allow=arguments.allow,
        within=arguments.within,
        family=arguments.family,
        sticky=arguments.sticky,
    )


def _once(target: Target) -> int:
    answer = target.resolver.resolve()
    print("\n".join(picture(target.name, answer)))
    if isinstance(target.resolver, DnsService) and not target.resolver.source.complete:
        late = "DNS has not answered all questions yet; --watch shows what comes later"
        print(f"lbclient resolve: {late}", file=sys.stderr)
    if not answer.instances:
        print("lbclient resolve: there is no usable instance", file=sys.stderr)
        return 1
    return 0
