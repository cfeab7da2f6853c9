"""A service registers its own address with DNS, and takes it out again."""

from __future__ import annotations

from lbclient.discovery.registration.registration import Registration
from lbclient.errors import RegistrationError

__all__ = ["Registration", "RegistrationError"]
