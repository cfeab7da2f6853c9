"""The HTTP library: httpx, and the httpcore that belongs to it.

Every file of this folder has it from here, and its siblings by relative imports: `lbclient.httpx2`
loads the same files a second time, beside a `flavour` of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx

# Where the application has called `httpx2.alias_httpx()`, httpx is httpx2 under another name.
if TYPE_CHECKING or httpx.__name__ == "httpx":
    import httpcore
else:
    import httpcore2 as httpcore

__all__ = ["NAME", "PUBLIC", "httpcore", "httpx"]

NAME = "httpx"
"""What an application calls it, alias or not."""
PUBLIC = "lbclient"
"""Where an application has these clients and transports from."""
