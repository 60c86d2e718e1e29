"""Passive health: which models are passed over, and how they come back."""

from hypothesis import given
from hypothesis import strategies as st

from extproc.health import Health

DOWN_MS = 5000


class Shared:
    """Two workers and what they share, as worker.py joins them."""

    def __init__(self) -> None:
        self.workers = Health(DOWN_MS), Health(DOWN_MS)
        self.marks: dict[str, int] = {}

    def observe(self, worker: int, *, reached: bool, now_ms: int) -> None:
        news = self.workers[worker].observe("m", reached, now_ms)
        if news:
            self.marks["m"] = news
        elif news == 0:
            self.marks.pop("m", None)

    def merge(self, now_ms: int) -> None:
        for worker in self.workers:
            worker.merge(self.marks, now_ms)

    def ask(self, worker: int, now_ms: int) -> None:
        if self.workers[worker].is_up("m", now_ms):
            self.workers[worker].begin_trial("m", now_ms)

    def up(self, now_ms: int) -> list[bool]:
        return [worker.is_up("m", now_ms) for worker in self.workers]


def test_a_model_is_up_until_a_receipt_says_otherwise() -> None:
    health = Health(DOWN_MS)
    assert health.is_up("m", 0)
    assert health.observe("m", True, 0) is None
    assert health.down() == []


def test_an_unreachable_model_is_passed_over_for_a_while() -> None:
    health = Health(DOWN_MS)
    assert health.observe("m", False, 1000) == 6000
    assert not health.is_up("m", 5999)
    assert health.is_up("other", 5999)
    assert health.down() == ["m"]


def test_then_one_request_tries_it_and_the_others_wait_for_its_receipt() -> None:
    health = Health(DOWN_MS)
    health.observe("m", False, 0)
    assert [health.is_up("m", 5000) for _ in range(3)] == [True, True, True]  # a look is no trial
    health.begin_trial("m", 5000)
    assert not health.is_up("m", 5000)
    assert not health.is_up("m", 9999)
    assert health.is_up("m", 10_000)  # the trial's receipt never came


def test_the_first_answer_puts_it_back() -> None:
    health = Health(DOWN_MS)
    health.observe("m", False, 0)
    assert health.observe("m", True, 10) == 0
    assert health.is_up("m", 11)
    assert health.down() == []


def test_a_failed_trial_takes_it_off_again_and_says_so() -> None:
    health = Health(DOWN_MS)
    health.observe("m", False, 0)
    assert health.is_up("m", 5000)
    assert health.observe("m", False, 9000) == 14_000
    assert not health.is_up("m", 13_999)


def test_many_failures_at_once_are_published_once() -> None:
    health = Health(DOWN_MS)
    news = [health.observe("m", False, now) for now in range(0, 2000, 100)]
    assert [n for n in news if n is not None] == [5000]


def test_failures_that_go_on_are_published_again_before_the_mark_runs_out() -> None:
    health = Health(DOWN_MS)
    assert health.observe("m", False, 0)
    assert health.observe("m", False, 2499) is None
    assert health.observe("m", False, 2500 + 2499) == 9999


def test_one_workers_word_is_taken_by_the_other() -> None:
    shared = Shared()
    shared.observe(0, reached=False, now_ms=0)
    assert shared.up(1) == [False, True]
    shared.merge(2)
    assert shared.up(3) == [False, False]


def test_an_answer_seen_by_one_worker_puts_the_model_back_on_both() -> None:
    shared = Shared()
    shared.observe(0, reached=False, now_ms=0)
    shared.merge(1)
    shared.observe(1, reached=True, now_ms=6000)
    assert shared.up(6001)[1]
    shared.merge(6002)
    assert shared.up(6003) == [True, True]
    assert all(worker.down() == [] for worker in shared.workers)


def test_a_trial_that_failed_on_one_worker_spares_the_other_its_own() -> None:
    shared = Shared()
    shared.observe(0, reached=False, now_ms=0)
    shared.merge(1)
    assert shared.workers[0].is_up("m", 5000)
    shared.observe(0, reached=False, now_ms=5001)
    shared.merge(5002)
    assert not shared.workers[1].is_up("m", 9999)
    assert shared.workers[1].is_up("m", 10_001)


def test_a_mark_that_is_not_published_yet_is_not_taken_for_lifted() -> None:
    health = Health(DOWN_MS)
    health.observe("m", False, 0)
    health.merge({}, 1)
    assert health.down() == ["m"]


def test_an_old_mark_of_others_is_no_news() -> None:
    health = Health(DOWN_MS)
    health.merge({"m": 1000}, 1000)
    assert health.down() == []


STEPS = st.lists(
    st.tuples(st.integers(0, 4000), st.sampled_from(["reached", "failed", "merge", "ask"]), st.integers(0, 1))
)


@given(STEPS)
def test_whatever_happened_an_answer_seen_by_both_puts_the_model_back(steps: list[tuple[int, str, int]]) -> None:
    shared, now = Shared(), 0
    for elapsed, what, worker in steps:
        now += elapsed
        if what == "merge":
            shared.merge(now)
        elif what == "ask":
            shared.ask(worker, now)
        else:
            shared.observe(worker, reached=what == "reached", now_ms=now)
    shared.merge(now)
    for worker in (0, 1):
        shared.observe(worker, reached=True, now_ms=now)
    shared.merge(now)
    assert shared.marks == {}
    assert shared.up(now) == [True, True]


@given(STEPS)
def test_a_model_is_never_passed_over_for_longer_than_its_time(steps: list[tuple[int, str, int]]) -> None:
    shared, now = Shared(), 0
    for elapsed, what, worker in steps:
        now += elapsed
        if what == "merge":
            shared.merge(now)
        elif what == "ask":
            shared.ask(worker, now)
        else:
            shared.observe(worker, reached=what == "reached", now_ms=now)
    assert shared.up(now + DOWN_MS) == [True, True]
