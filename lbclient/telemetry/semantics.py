"""Semantics: how a protocol describes a call."""

from __future__ import annotations

from collections.abc import Mapping

from lbclient.endpoint.instance import Instance

__all__ = ["Attributes", "Semantics", "error_attributes"]

Attributes = Mapping[str, str | int | float | bool]

_NOTHING: Attributes = {}


class Semantics:
    """Describes the calls of a protocol to telemetry. This default adds no attributes.

    An attempt has failed if its attributes include `error.type`.
    """

    __slots__ = ()

    span_name = "lbclient.attempt"
    metric = "http.client.request.duration"
    """The name of the metric in which durations are recorded. It must be a histogram of
    `telemetry/metrics.py`."""
    minimal = True
    """True if nothing uses the duration or the record of a successful attempt."""

    def request(self, resend: int) -> Attributes:  # noqa: ARG002  # for others
        """The attributes that are known before sending. `resend` is 0 for the first attempt, 1 for
        the second, and so on."""
        return _NOTHING

    def addressed(self, instance: Instance) -> Attributes:  # noqa: ARG002  # for others
        """The attributes that depend on the instance. They replace attributes of `request` with the
        same names."""
        return _NOTHING

    def result(self, result: object) -> Attributes:  # noqa: ARG002  # for others
        """The attributes of an attempt's result."""
        return _NOTHING

    def outcome(self, result: object, error: BaseException | None) -> Attributes:
        """The attributes of an attempt's result, or of the error that ended it."""
        return self.result(result) if error is None else error_attributes(error)

    def duration(self, result: object) -> Attributes | None:  # noqa: ARG002  # for others
        """Return the labels with which an attempt's duration is recorded. None means that it is not
        recorded."""
        return None


def error_attributes(error: BaseException | None) -> Attributes:
    """Return the type of an error as attributes. The text of the error is left out, since it may
    contain a secret."""
    return _NOTHING if error is None else {"error.type": type(error).__qualname__}
