"""An answer that is kept for a moment, and a failure too: however many ask, and however long it takes to fail.

What takes long is asked less often: at most a twentieth of the time is spent in it. After a failure it is asked again
sooner than after an answer, so that what has come back is seen.
"""

import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

_SHARE = 20
_ERROR_SECONDS = 2.0
_LONGEST_ERROR_SECONDS = 60.0
T = TypeVar("T")


class Kept(Generic[T]):
    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._answer: list[T] = []
        self._error: Exception | None = None
        self._again_at = float("-inf")

    async def get(self, read: Callable[[], Awaitable[T]]) -> T:
        """The caller sees to it that only one asks at a time."""
        began = self._clock()
        if began >= self._again_at:
            await self._ask(read, began)
        if self._error is not None:
            raise self._error.with_traceback(None)
        return self._answer[0]

    async def _ask(self, read: Callable[[], Awaitable[T]], began: float) -> None:
        try:
            self._answer, self._error = [await read()], None
        except Exception as error:  # noqa: BLE001  it is raised again, to this asker and to the next ones
            self._answer, self._error = [], error
        now = self._clock()
        pause = _SHARE * (now - began)
        if self._error is None:
            self._again_at = now + max(self._seconds, pause)
        else:
            self._again_at = now + min(max(min(self._seconds, _ERROR_SECONDS), pause), _LONGEST_ERROR_SECONDS)
