"""What a simulated instance answers, and what that means: the table of outcomes, by status."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from lbclient import checks
from lbclient.outcome import CLIENT_ERROR, FINE, Judge, Verdict
from lbclient.outcome import judge as network_judge

__all__ = ["Reply", "judge_of", "status_of"]

_LAST_STATUS = 999


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer with `status` after `seconds` (for ever: `math.inf`).

    With `error` that is raised in its place: `ConnectionRefusedError()` was never sent,
    `ConnectionResetError()` may have been. `rest` is what `Retry-After` asks for, in seconds.

    `body` is how many seconds after its headers the answer is complete; until then its instance is
    busy. With `error` too, the headers come, and the body breaks off.
    """

    seconds: float
    status: int = 200
    error: OSError | None = None
    rest: float = 0.0
    body: float = 0.0

    @property
    def broken(self) -> OSError | None:
        """What is raised in place of an answer."""
        return None if self.body else self.error


def judge_of(statuses: Collection[int]) -> Judge:
    """Judges as HTTP's judge does; `statuses` are those that are tried again."""
    again = {
        status: Verdict(fault=500 <= status <= 599, again="idempotent", rejected=True)
        for status in statuses
    }
    fault = Verdict(fault=True)

    def judge(result: object) -> Verdict:
        if not isinstance(result, Reply):
            return network_judge(result)
        verdict = again.get(result.status)
        if verdict is None:
            if result.status < 400 or result.status > 599:
                return FINE
            return fault if result.status >= 500 else CLIENT_ERROR
        if result.rest:
            return Verdict(fault=verdict.fault, again="idempotent", rest=result.rest)
        return verdict

    return judge


def status_of(name: str, value: object) -> int:
    """The status. Raises TypeError or ValueError, naming the argument, for what can be none."""
    status = checks.count(name, value, least=100)
    if status > _LAST_STATUS:
        raise ValueError(f"{name} must be at most {_LAST_STATUS}, not {value!r}")
    return status
