"""The same tests, of `lbclient.httpx2`: `python -m pytest -p tests.support.on_httpx2 tests/…`.

What they know as `httpx` is httpx2 then; `lbclient.Client` and the like, and the modules of
`lbclient.http`, are those that `lbclient.httpx2` has loaded.
"""

import sys

import httpcore2
import httpx2

import lbclient.httpx2

sys.modules |= {"httpx": httpx2, "httpcore": httpcore2}
for name in ("AsyncClient", "AsyncTransport", "Client", "Transport"):
    setattr(lbclient, name, getattr(lbclient.httpx2, name))
for name, module in list(sys.modules.items()):
    _, loaded_again, file = name.partition("lbclient.httpx2.")
    if loaded_again:
        sys.modules[f"lbclient.http.{file}"] = module
        setattr(lbclient.http, file, module)
        if hasattr(module, "NAME"):
            module.NAME = "httpx"  # messages name the library, and the tests expect that name
