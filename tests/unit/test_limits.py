"""A bucket's integers against exact fractions."""

import datetime as dt
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc import limits
from extproc.limits import DROPS, FULL, Bucket

RATES = st.integers(1, 10_000_000)
BURSTS = st.integers(0, 10_000_000)
UNITS = st.integers(0, 20_000_000)
TIMES = st.integers(0, 2_000_000_000_000)
STEPS = st.lists(st.tuples(st.integers(0, 120_000), st.integers(-1000, 1000)), max_size=30)


def test_a_bucket_that_nobody_has_seen_is_full() -> None:
    bucket = limits.refill(FULL, 100, 1_764_000_000_000)
    assert limits.level(bucket.missing, 100, 100) == limits.Level(100, 100, 0)


def test_it_refills_one_request_in_600_ms_at_100_a_minute() -> None:
    empty = limits.take(limits.refill(FULL, 100, 0), 100)
    assert limits.level(empty.missing, 100, 100).remaining == 0
    assert limits.wait_ms(empty, 1, 100, 100) == 600
    assert limits.level(limits.refill(empty, 100, 599).missing, 100, 100).remaining == 0
    assert limits.level(limits.refill(empty, 100, 600).missing, 100, 100).remaining == 1


def test_a_burst_of_0_is_one_minutes_worth() -> None:
    assert limits.level(0, 60, 0).remaining == 60


def test_no_rate_is_no_limit() -> None:
    assert limits.level(123, 0, 5) == limits.Level(0, 0, 0)


def test_debt_is_paid_before_anything_is_given() -> None:
    debt = limits.take(Bucket(0, 0), 300)
    assert limits.level(debt.missing, 60, 100) == limits.Level(60, 0, 300_000)
    assert limits.wait_ms(debt, 1, 60, 100) == 201_000


def test_what_is_given_back_never_overflows() -> None:
    assert limits.take(Bucket(5 * DROPS, 7), -10) == Bucket(0, 7)


def test_a_claim_larger_than_the_bucket_waits_for_a_full_bucket() -> None:
    assert limits.wait_ms(Bucket(0, 0), 1000, 60, 100) == 0
    assert limits.wait_ms(Bucket(DROPS, 0), 1000, 60, 100) == 1000


def test_a_clock_that_steps_back_neither_gives_nor_takes() -> None:
    assert limits.refill(Bucket(500, 1000), 60, 400) == Bucket(500, 400)


@given(rate=RATES, burst=BURSTS, steps=STEPS)
def test_no_rounding_however_the_time_is_cut(rate: int, burst: int, steps: list[tuple[int, int]]) -> None:
    capacity = burst or rate
    bucket, now, left = FULL, 0, Fraction(capacity)
    for elapsed, units in steps:
        now += elapsed
        left = min(Fraction(capacity), left + Fraction(rate * elapsed, 60_000))
        bucket = limits.refill(bucket, rate, now)
        left = min(Fraction(capacity), left - units)
        bucket = limits.take(bucket, units)
        assert Fraction(capacity) - Fraction(bucket.missing, DROPS) == left


@given(rate=RATES, burst=BURSTS, units=UNITS, missing=st.integers(0, 10**15), now=TIMES)
def test_the_wait_is_long_enough_and_not_a_millisecond_longer(
    rate: int, burst: int, units: int, missing: int, now: int
) -> None:
    bucket = Bucket(missing, now)
    wait = limits.wait_ms(bucket, units, rate, burst)
    assert limits.wait_ms(limits.refill(bucket, rate, now + wait), units, rate, burst) == 0
    if wait:
        assert limits.wait_ms(limits.refill(bucket, rate, now + wait - 1), units, rate, burst) > 0


@given(st.datetimes(dt.datetime(1970, 1, 1), dt.datetime(2199, 12, 31)))  # noqa: DTZ001 - UTC is put on below
def test_months_and_days_are_those_of_the_calendar(when: dt.datetime) -> None:
    when = when.replace(tzinfo=dt.UTC)
    now_ms = (when - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(milliseconds=1)
    assert limits.day(now_ms) == when.strftime("%Y-%m-%d")
    assert limits.month(now_ms) == when.strftime("%Y-%m")
    first = when.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    following = (first + dt.timedelta(days=32)).replace(day=1)
    assert limits.month_ends_ms(now_ms) == int(following.timestamp()) * 1000


@pytest.mark.parametrize(
    ("since", "until", "names"),
    [
        ("2026-02-27", "2026-03-01", ["2026-02-27", "2026-02-28", "2026-03-01"]),
        ("2026-11-23", "2026-11-23", ["2026-11-23"]),
        ("2026-11-24", "2026-11-23", []),
    ],
)
def test_days_include_both_ends(since: str, until: str, names: list[str]) -> None:
    assert limits.days(since, until) == names
