"""The spans and metrics of gRPC calls, as defined by OpenTelemetry's conventions for RPC
clients."""

from __future__ import annotations

import grpc

from lbclient.protocol import Attributes, Semantics

__all__ = ["GrpcSemantics"]

_OK: Attributes = {"rpc.grpc.status_code": 0}
_CODE = "rpc.grpc.status_code"


class GrpcSemantics(Semantics):
    """The attributes of the RPCs of one method. They never contain messages or metadata."""

    __slots__ = ("_known", "_labels", "span_name")

    metric = "rpc.client.duration"
    minimal = False

    def __init__(self, method: str, server: Attributes) -> None:
        service, _, name = method.removeprefix("/").rpartition("/")
        self.span_name: str = method.removeprefix("/")
        self._known: Attributes = {
            "rpc.system": "grpc",
            "rpc.service": service,
            "rpc.method": name,
            **server,
        }
        self._labels: dict[object, Attributes] = {}

    def request(self, resend: int) -> Attributes:  # noqa: ARG002  # the convention has none
        """Return the attributes that are known before sending."""
        return self._known

    def result(self, result: object) -> Attributes:
        """Return the status. Every status except OK is an error."""
        return _status(result) if isinstance(result, grpc.RpcError) else _OK

    def outcome(self, result: object, error: BaseException | None) -> Attributes:
        """Return the status of a result, or of the error that ended the attempt."""
        return {**self.result(result if error is None else error), **_type(error)}

    def duration(self, result: object) -> Attributes:
        """Return the labels with which the duration of an attempt is recorded."""
        key = result.code() if isinstance(result, grpc.RpcError) else None
        labels = self._labels.get(key)
        if labels is None:
            labels = self._labels[key] = {**self._known, **self.result(result)}
        return labels


def _status(error: grpc.RpcError) -> Attributes:
    code = error.code()
    if code is grpc.StatusCode.OK:
        return _OK
    return {_CODE: code.value[0], "error.type": code.name}


def _type(error: BaseException | None) -> Attributes:
    """Return the type of an error that has no status, as text."""
    if error is None or isinstance(error, grpc.RpcError):
        return {}
    return {"error.type": type(error).__qualname__}
