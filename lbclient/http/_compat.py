"""The HTTP library: httpx.

Every file of this folder has it from here, and its siblings by relative imports: `lbclient.httpx2`
loads the same files a second time, beside a `_compat` of its own.
"""

from __future__ import annotations

import httpx

__all__ = ["NAME", "PUBLIC", "httpx"]

NAME = "httpx"
"""What an application calls it, alias or not."""
PUBLIC = "lbclient"
"""Where an application has these clients and transports from."""
