"""How a protocol describes a call."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["Attributes", "Semantics", "error_attributes"]

Attributes = Mapping[str, str | int | float | bool]

_NOTHING: Attributes = {}


class Semantics:
    """How a protocol describes a call to telemetry. This one, the default, adds nothing.

    An attribute `error.type` marks a failed attempt.
    """

    __slots__ = ()

    span_name = "lbclient.attempt"
    minimal = True
    """True where nobody asks for the duration or the record of an attempt that went well."""

    def request(self, resend: int) -> Attributes:  # noqa: ARG002  # for others
        """What is known before sending; `resend` counts from 1 at the second attempt."""
        return _NOTHING

    def result(self, result: object) -> Attributes:  # noqa: ARG002  # for others
        """What the result of an attempt tells."""
        return _NOTHING

    def outcome(self, result: object, error: BaseException | None) -> Attributes:
        """What an attempt came to: its result, or the error that ended it."""
        return self.result(result) if error is None else error_attributes(error)

    def duration(self, result: object) -> Attributes | None:  # noqa: ARG002  # for others
        """The labels under which an attempt's duration is recorded; None records none."""
        return None


def error_attributes(error: BaseException | None) -> Attributes:
    """The type of an error, never its text: that may hold a secret."""
    return _NOTHING if error is None else {"error.type": type(error).__qualname__}
