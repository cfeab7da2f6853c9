"""The HTTP library: httpx.

Every file of this package imports the HTTP library from this module, and imports other files of the
package by relative imports. So `lbclient.httpx2` can load the same files a second time, with
another `_compat`.
"""

from __future__ import annotations

import httpx

__all__ = ["NAME", "PUBLIC", "httpx"]

NAME = "httpx"
"""The name of the library in messages to users."""
PUBLIC = "lbclient"
"""The module from which an application imports these clients and transports."""
