"""A small authoritative DNS server, UDP and TCP, in its own process: `python dns_server.py`.

The process prints its port. Each line of its standard input is the text of a zone file (with its
$ORIGIN), as a JSON string. The server then uses this zone instead of the previous one, and answers
with a line. The process exits when standard input ends, so it cannot outlive its parent.
"""

from __future__ import annotations

import contextlib
import json
import socketserver
import struct
import sys
import threading
from collections.abc import Iterator

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import dns.zone

__all__ = ["Authority", "serve"]

_PLAIN_UDP = 512
_TCP = 65535


class Authority:
    """Answers questions from `zone`, which may be replaced at any time."""

    def __init__(self) -> None:
        self.zone: dns.zone.Zone | None = None

    def reply(self, wire: bytes, most: int | None = None) -> bytes | None:
        """Return the response, truncated to `most` bytes. If `most` is None, this is the size that
        the client accepts over UDP. Returns None for an invalid question."""
        try:
            query = dns.message.from_wire(wire)
            response = dns.message.make_response(query)
        except dns.exception.DNSException:
            return None
        self._fill(response)
        limit = most or max(_PLAIN_UDP, query.payload)
        return response.to_wire(max_size=limit, prefer_truncation=True)

    def _fill(self, response: dns.message.Message) -> None:
        zone = self.zone
        if zone is None or not response.question:
            response.set_rcode(dns.rcode.SERVFAIL)
        elif not response.question[0].name.is_subdomain(_origin(zone)):
            response.set_rcode(dns.rcode.REFUSED)
        else:
            response.flags |= dns.flags.AA
            _look_up(zone, response)


def _look_up(zone: dns.zone.Zone, response: dns.message.Message) -> None:
    name, kind = response.question[0].name, response.question[0].rdtype
    if (found := zone.get_rrset(name, kind)) is not None:
        response.answer.append(found)
        response.additional.extend(_glue(zone, found))
        return
    if zone.get_node(name) is None:
        response.set_rcode(dns.rcode.NXDOMAIN)
    if (authority := zone.get_rrset(_origin(zone), dns.rdatatype.SOA)) is not None:
        response.authority.append(authority)


def _glue(zone: dns.zone.Zone, found: dns.rrset.RRset) -> Iterator[dns.rrset.RRset]:
    """Yield the addresses of SRV targets, which are sent with the answer."""
    targets = {one.target for one in found if found.rdtype == dns.rdatatype.SRV}
    for target in sorted(targets):
        for kind in (dns.rdatatype.A, dns.rdatatype.AAAA):
            if target.is_subdomain(_origin(zone)) and (addresses := zone.get_rrset(target, kind)):
                yield addresses


def _origin(zone: dns.zone.Zone) -> dns.name.Name:
    return zone.origin or dns.name.root


class _Udp(socketserver.BaseRequestHandler):
    server: _UdpServer

    def handle(self) -> None:
        packet, sock = self.request
        if (reply := self.server.authority.reply(packet)) is not None:
            sock.sendto(reply, self.client_address)


class _Tcp(socketserver.StreamRequestHandler):
    server: _TcpServer

    def handle(self) -> None:
        while len(head := self.rfile.read(2)) == 2:
            (length,) = struct.unpack("!H", head)
            reply = self.server.authority.reply(self.rfile.read(length), _TCP)
            if reply is None:
                return
            self.wfile.write(struct.pack("!H", len(reply)) + reply)


class _UdpServer(socketserver.UDPServer):
    def __init__(self, authority: Authority, port: int) -> None:
        self.authority = authority
        super().__init__(("127.0.0.1", port), _Udp)


class _TcpServer(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        super().__init__(("127.0.0.1", 0), _Tcp)


def serve(authority: Authority) -> int:
    """Serve on a free port of the loopback interface, in the background. Returns the port."""
    for server in (servers := _bound(authority)):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    return int(servers[0].server_address[1])


def _bound(authority: Authority) -> tuple[_TcpServer, _UdpServer]:
    """Create both servers on one port. If a free TCP port is in use for UDP, another port is
    tried."""
    while True:
        tcp = _TcpServer(authority)
        with contextlib.suppress(OSError):
            return tcp, _UdpServer(authority, tcp.server_address[1])
        tcp.server_close()


def _main() -> None:
    authority = Authority()
    print(serve(authority), flush=True)
    for line in sys.stdin:
        authority.zone = dns.zone.from_text(json.loads(line), relativize=False)
        print("ok", flush=True)


if __name__ == "__main__":
    _main()
