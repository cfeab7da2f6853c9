"""The few protocol buffers that lbclient itself reads and writes: health checks and load reports.

They are read and written without generated code, since generated code must match the installed
version of protobuf.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

__all__ = ["double", "fields", "text_field"]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT = 10


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the fields of a message as (number of the field, value). The value of a varint is a
    number; all other values are bytes.

    Raises ValueError if the message is malformed.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            size, at = _varint(message, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        if at + size > len(message):
            raise ValueError("a field is cut short")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(message[at : at + _LONGEST_VARINT]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise ValueError("a number is cut short")


def double(value: int | bytes) -> float:
    """Read a double. Raises ValueError if the value is not a double."""
    if not isinstance(value, bytes) or len(value) != 8:
        raise ValueError("a double is malformed")
    number: float = struct.unpack("<d", value)[0]
    return number


def text_field(number: int, text: str) -> bytes:
    """Write a field of text of any length."""
    data = text.encode()
    size, length = len(data), bytearray()
    while size >= 0x80:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return bytes([number << 3 | _BYTES]) + bytes(length) + data if data else b""
