"""Registers the address of a service, in DNS or in another registry, and removes it again."""

from __future__ import annotations

from lbclient.discovery.registration.registration import Registration
from lbclient.errors import RegistrationError

__all__ = ["Registration", "RegistrationError"]
