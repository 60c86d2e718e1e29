"""What is kept of the store's answers and failures, and for how long; by a clock of the test's."""

import pytest

from extproc.console.kept import Kept
from extproc.errors import StoreUnavailable


class Store:
    """Takes its time to answer or to fail."""

    def __init__(self, takes_seconds: float = 0.0, *, away: bool = False) -> None:
        self.now, self.asked, self.away, self._takes_seconds = 0.0, 0, away, takes_seconds

    async def read(self) -> int:
        self.asked += 1
        self.now += self._takes_seconds
        if self.away:
            raise StoreUnavailable("nobody there")
        return self.asked

    async def asked_again_after(self, kept: Kept[int]) -> float:
        began, before = self.now, self.asked
        while self.asked == before:
            self.now += 0.5
            if self.away:
                with pytest.raises(StoreUnavailable):
                    await kept.get(self.read)
            else:
                await kept.get(self.read)
        return self.now - began - self._takes_seconds


@pytest.mark.parametrize(("takes", "wait"), [(0.0, 5), (0.1, 5), (1.0, 20)])
async def test_an_answer_is_kept_and_longer_where_it_took_long(takes: float, wait: float) -> None:
    store = Store(takes)
    kept = Kept[int](5.0, lambda: store.now)
    assert [await kept.get(store.read) for _ in range(3)] == [1, 1, 1]
    assert await store.asked_again_after(kept) == wait


@pytest.mark.parametrize(("takes", "wait"), [(0.0, 2), (1.0, 20), (10.0, 60)])
async def test_a_failure_is_kept_too(takes: float, wait: float) -> None:
    store = Store(takes, away=True)
    kept = Kept[int](60.0, lambda: store.now)
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await kept.get(store.read)
    assert store.asked == 1
    assert await store.asked_again_after(kept) == wait


async def test_what_comes_back_is_answered_again() -> None:
    store = Store(away=True)
    kept = Kept[int](5.0, lambda: store.now)
    with pytest.raises(StoreUnavailable):
        await kept.get(store.read)
    store.now, store.away = 2.0, False
    assert await kept.get(store.read) == 2
