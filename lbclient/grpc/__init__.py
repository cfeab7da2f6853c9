"""gRPC: channels of grpcio that balance RPCs over all instances of a service.

    with lbclient.grpc.channel("grpc+srv://orders.example.com") as channel:
        order = OrdersStub(channel).Get(OrderRequest(id=42), timeout=2.0)

`lbclient.grpc.aio.channel` is the same for asyncio.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Unpack

try:
    import grpc
except ModuleNotFoundError as _error:
    if _error.name != "grpc":
        raise
    raise ImportError("lbclient.grpc needs grpcio: pip install 'lbclient[grpc]'") from _error

from lbclient.grpc.adapter import Adapter, ChannelArguments, Codes, Idempotent
from lbclient.grpc.deadlines import DeadlineInterceptor
from lbclient.grpc.options import ChannelOptions
from lbclient.grpc.threads import BalancedChannel

if TYPE_CHECKING:
    from lbclient.discovery.composite import Service

__all__ = ["BalancedChannel", "DeadlineInterceptor", "channel"]


def __getattr__(name: str) -> object:
    if name == "aio":  # `lbclient.grpc.aio` needs no separate import
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def channel(
    service: Service,
    *,
    credentials: grpc.ChannelCredentials | None = None,
    options: ChannelArguments = (),
    interceptors: Sequence[Any] = (),
    idempotent: Idempotent = (),
    codes: Codes = frozenset({"UNAVAILABLE"}),
    **balancing: Unpack[ChannelOptions],
) -> BalancedChannel:
    """Return a `grpc.Channel` that spreads its RPCs over the instances of one service.

    Generated stubs work with this channel unchanged: all four kinds of call, futures, `with_call`,
    interceptors, `wait_for_ready`, compression, metadata. `timeout=` is the deadline of a whole
    call.

    - `service`: the service to call: a URL such as `"grpc+srv://orders.example.com"` or
      `"grpc+dns://orders.example.com:50051"`, a list of `"host:port"` or of `Instance`, an object
      with `resolve() -> Answer`, a `Watcher`, or several of these as `FirstOf(...)` or
      `Union(...)`.
    - `credentials`: the credentials for TLS, such as `grpc.ssl_channel_credentials()`; required for
      the scheme `grpcs`. TLS verifies the name of the service.
    - `options`: gRPC's channel arguments, as `grpc.insecure_channel` takes them.
    - `interceptors`: client interceptors. They are called once for each call, even if the call has
      several attempts.
    - `idempotent`: the methods that may be repeated even if an attempt may have been carried out:
      full names such as `"/orders.Orders/Get"`, or a function that takes a name. In addition,
      methods whose descriptor has an `idempotency_level` may be repeated. A call that was never
      sent may always be repeated, and a stream of responses may be repeated until its first
      message.
    - `codes`: the statuses that are retried.

    Errors are `grpc.RpcError`s. If lbclient itself has ended the call, the cause of the error is an
    exception of lbclient.

    Raises ValueError or TypeError, naming the argument, if an argument is invalid.
    """
    adapter = Adapter(
        service,
        credentials=credentials,
        options=options,
        idempotent=idempotent,
        codes=codes,
        balancing=balancing,
    )
    return BalancedChannel(adapter, interceptors)
