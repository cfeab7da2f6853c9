"""Clean-up that no cancellation cuts in two.

httpcore shields its clean-up by cancel scopes, of which `task.cancel()` knows nothing, nor do
`asyncio.timeout` and `asyncio.wait_for`, which are built on it. One that comes between two steps
leaves a connection that is neither idle nor closed, and whose socket stays open for ever.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator
from typing import Any

__all__ = ["uncut"]


@types.coroutine
def uncut(work: Coroutine[Any, Any, object]) -> Generator[Any, Any, None]:
    """Await `work` to its end; a cancellation that comes meanwhile is raised then.

    What `work` waits for at that moment is cancelled all the same: asyncio knows no other way.
    """
    cancelled: asyncio.CancelledError | None = None
    sent: object = None
    try:
        while True:
            waited = work.send(sent)
            try:
                sent = yield waited
            except asyncio.CancelledError as error:
                cancelled, sent = error, None
    except StopIteration:
        pass
    except Exception:
        if cancelled is None:
            raise
    try:
        if cancelled is not None:
            raise cancelled
    finally:
        del cancelled  # its traceback holds this frame
