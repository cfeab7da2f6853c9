"""A service registers its own address with DNS, and takes it out again."""

from __future__ import annotations

from lbclient.registration.errors import RegistrationError
from lbclient.registration.registration import Registration

__all__ = ["Registration", "RegistrationError"]
