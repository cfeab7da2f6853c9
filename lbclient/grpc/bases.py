"""The abstract classes of grpcio, with type arguments for type checkers. At run time these classes
are not generic, or ignore their type arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

__all__ = [
    "AioStreamStream",
    "AioStreamStreamCall",
    "AioStreamUnary",
    "AioStreamUnaryCall",
    "AioUnaryStream",
    "AioUnaryStreamCall",
    "AioUnaryUnary",
    "AioUnaryUnaryCall",
    "Future",
    "StreamStream",
    "StreamUnary",
    "UnaryStream",
    "UnaryUnary",
]

if TYPE_CHECKING:
    Future = grpc.Future[Any]
    UnaryUnary = grpc.UnaryUnaryMultiCallable[Any, Any]
    UnaryStream = grpc.UnaryStreamMultiCallable[Any, Any]
    StreamUnary = grpc.StreamUnaryMultiCallable[Any, Any]
    StreamStream = grpc.StreamStreamMultiCallable[Any, Any]
    AioUnaryUnary = grpc.aio.UnaryUnaryMultiCallable[Any, Any]
    AioUnaryStream = grpc.aio.UnaryStreamMultiCallable[Any, Any]
    AioStreamUnary = grpc.aio.StreamUnaryMultiCallable[Any, Any]
    AioStreamStream = grpc.aio.StreamStreamMultiCallable[Any, Any]
    AioUnaryUnaryCall = grpc.aio.UnaryUnaryCall[Any, Any]
    AioUnaryStreamCall = grpc.aio.UnaryStreamCall[Any, Any]
    AioStreamUnaryCall = grpc.aio.StreamUnaryCall[Any, Any]
    AioStreamStreamCall = grpc.aio.StreamStreamCall[Any, Any]
else:
    Future = grpc.Future
    UnaryUnary = grpc.UnaryUnaryMultiCallable
    UnaryStream = grpc.UnaryStreamMultiCallable
    StreamUnary = grpc.StreamUnaryMultiCallable
    StreamStream = grpc.StreamStreamMultiCallable
    AioUnaryUnary = grpc.aio.UnaryUnaryMultiCallable
    AioUnaryStream = grpc.aio.UnaryStreamMultiCallable
    AioStreamUnary = grpc.aio.StreamUnaryMultiCallable
    AioStreamStream = grpc.aio.StreamStreamMultiCallable
    AioUnaryUnaryCall = grpc.aio.UnaryUnaryCall
    AioUnaryStreamCall = grpc.aio.UnaryStreamCall
    AioStreamUnaryCall = grpc.aio.StreamUnaryCall
    AioStreamStreamCall = grpc.aio.StreamStreamCall
