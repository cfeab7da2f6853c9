"""The arguments of the command line, and its help."""

from __future__ import annotations

import argparse
import math

from lbclient import __version__
from lbclient.cli.demo import demo
from lbclient.cli.resolve import resolve
from lbclient.strategy.registry import BY_NAME

__all__ = ["parser"]

_LEAST, _MOST = 5.0, 3600.0

_DEMO = """\
Watch the load balancer at work. A small DNS server and five HTTP instances of
different speed and weight start on this machine, each in its own process.
Twelve threads call them through lbclient.Client("http+srv://orders.demo.test").
Then one instance is killed, one becomes slow, and a new one appears in DNS.
The live view needs rich: pip install 'lbclient[cli]'.

The exit status is 1 if any call failed, otherwise 0.
"""

_RESOLVE = """\
Ask discovery about a service and print the answer: the instances by tier, each
with its weight, its share of the tier and its addresses; the TTL; the age of
the answer, which is 0 s; and the refused records with their reasons.

With --watch it continues to ask, as a client does: again at the TTL (at least
1 s, at most 1 h, plus or minus a tenth); after a failure in 1 s, then at growing
intervals of up to 30 s, while the last good answer stays in use. Each change is
one line with the local time: instances that joined, left or changed, records
that are refused or no longer refused, the service declared absent, lookups that
fail (with the age of the answer in use) and that work again. Before the first
answer, failures go to standard error.

SERVICE is one of
  http+srv://NAME        SRV records (https+srv://, https+dns:// etc. for TLS)
  http+dns://NAME:PORT   A and AAAA records
  http+file:///PATH      a file of instances, read again every second
  http+k8s://NAME.NAMESPACE:PORT, http+consul://NAME, http+etcd:///PREFIX/
                         a registry that reports each change at once
  http://HOST:PORT ...   a list, which never changes

The exit status is 0 if an answer was shown, 1 if there is no usable instance or
the output was closed, 2 for invalid arguments, 130 after Ctrl-C.

  lbclient resolve http+srv://orders.example.com
  lbclient resolve http+srv://orders.example.com --watch
  lbclient resolve http+srv://_orders._tcp.example.com --nameserver 127.0.0.1:5353
  lbclient resolve http+srv://orders.example.com --nameserver tls://10.0.0.2#dns.example
  lbclient resolve http+dns://orders.example.com:8080
  lbclient resolve http+file:///etc/orders/instances --watch
  lbclient resolve http://10.0.0.1:8080 http://10.0.0.2:8080
"""


def parser() -> argparse.ArgumentParser:
    """Return a parser. The namespace that `parse_args` returns has an attribute `run`, a function
    that runs the command."""
    main = argparse.ArgumentParser(
        prog="lbclient",
        description="Client-side load balancing: see it work, and see what discovery returns.",
    )
    main.add_argument("--version", action="version", version=f"lbclient {__version__}")
    commands = main.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(commands)
    _add_resolve(commands)
    return main


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    add = _command(commands, "demo", "watch instances fail and the traffic move to others", _DEMO)
    add.set_defaults(run=demo)
    add.add_argument(
        "--seconds",
        type=_seconds,
        default=24.0,
        metavar="N",
        help=f"the length of the demo in seconds, {_LEAST:g} to {_MOST:g} (default 24)",
    )
    add.add_argument(
        "--strategy",
        choices=sorted(BY_NAME),
        default="least-busy",
        help="the strategy that picks instances (default least-busy)",
    )
    add.add_argument(
        "--grpc",
        action="store_true",
        help="the instances speak gRPC; needs grpcio: pip install 'lbclient[grpc]'",
    )
    add.add_argument(
        "--plain",
        action="store_true",
        help="print lines of text instead of a live view; the default if stdout is not a terminal",
    )


def _add_resolve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    add = _command(commands, "resolve", "print what discovery returns for a service", _RESOLVE)
    add.set_defaults(run=resolve)
    add.add_argument(
        "service",
        nargs="+",
        metavar="SERVICE",
        help="a URL such as http+srv://orders.example.com, or the URLs of a static list",
    )
    add.add_argument(
        "--nameserver",
        action="append",
        metavar="ADDRESS",
        help="ask this DNS server: 127.0.0.1:5353, over TLS as tls://10.0.0.2#dns.example, over "
        "HTTPS as https://dns.example/dns-query; repeatable (default: the system's)",
    )
    add.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="NETWORK",
        help="also accept addresses of this network, such as 127.0.0.0/8; repeatable",
    )
    add.add_argument(
        "--within",
        metavar="DOMAIN",
        help="refuse SRV targets, and host names of a registry, outside this domain",
    )
    add.add_argument(
        "--family",
        choices=["any", "ipv4", "ipv6"],
        default="any",
        help="ask DNS for addresses of this family only (default any)",
    )
    add.add_argument(
        "--sticky",
        type=float,
        metavar="SECONDS",
        help="keep an address or instance this long after DNS stops returning it (with --watch)",
    )
    add.add_argument(
        "--watch",
        action="store_true",
        help="continue to ask, and print each change, until Ctrl-C",
    )


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    description: str,
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not _LEAST <= seconds <= _MOST:
        raise argparse.ArgumentTypeError(
            f"must be a number of seconds from {_LEAST:g} to {_MOST:g}, not {text!r}"
        )
    return seconds
