"""The secret that signs messages to a DNS server (TSIG, RFC 8945)."""

from __future__ import annotations

import base64
import binascii

import dns.tsig

from lbclient import checks

__all__ = ["Tsig"]

_ALGORITHMS = {
    str(name).rstrip(".").lower(): name
    for name in dns.tsig.mac_sizes
    if name not in (dns.tsig.GSS_TSIG, dns.tsig.HMAC_MD5)
} | {"hmac-md5": dns.tsig.HMAC_MD5}


class Tsig(dns.tsig.Key):
    """A secret shared with the server. Its repr, unlike dnspython's, does not show it.

    Raises ValueError, which says nothing of what was given: any part of it may be the secret.
    """

    def __init__(self, name: str, secret: str, algorithm: str = "hmac-sha256") -> None:
        if (known := _ALGORITHMS.get(algorithm.lower().rstrip("."))) is None:
            raise ValueError(f"key must have one of the algorithms {', '.join(_ALGORITHMS)}")
        try:
            shared = base64.b64decode(secret, validate=True)
            super().__init__(checks.host("key", name), shared, known)
        except (binascii.Error, ValueError):
            shared = b""
        if not shared:
            raise ValueError("key must have a legal name and a secret in base64")

    def __repr__(self) -> str:
        return "<Tsig>"
