"""When a model is full, and for whom."""

import msgspec
from unit_rig import MISTRAL

from extproc.config import Priority
from extproc.pressure import Pressure, Reading, Readings

MODEL = msgspec.structs.replace(MISTRAL, max_in_flight_per_replica=100)
NAME = MODEL.name


def pressure(*readings: tuple[float, Reading], workers: int = 1) -> Pressure:
    made = Pressure(workers)
    for at, reading in readings:
        made.read(Readings(at, {NAME: {"": reading}}))
    return made


def full_for(made: Pressure, now: float = 1.0) -> list[Priority]:
    priorities: list[Priority] = ["low", "normal", "high"]
    return [priority for priority in priorities if made.is_full(MODEL, priority, now)]


def test_callers_of_low_priority_are_turned_away_first_and_those_of_high_last() -> None:
    expected = {99: [], 100: ["low"], 199: ["low"], 200: ["low", "normal"], 249: ["low", "normal"]}
    for count, priorities in expected.items():
        assert full_for(pressure((1.0, Reading(count, replicas=2)))) == priorities
    assert full_for(pressure((1.0, Reading(250, replicas=2)))) == ["low", "normal", "high"]


def test_a_replica_that_goes_takes_its_room_with_it() -> None:
    assert full_for(pressure((1.0, Reading(120, replicas=2)))) == ["low"]
    assert full_for(pressure((1.0, Reading(120, replicas=1)))) == ["low", "normal"]


def test_nothing_is_full_while_nothing_is_known() -> None:
    assert full_for(Pressure(1)) == []
    assert full_for(pressure((1.0, Reading(10_000, replicas=0)))) == []  # Envoy says itself that there is none
    assert full_for(pressure((1.0, Reading(10_000, replicas=1))), now=4.1) == []  # the reading is old
    assert not pressure((1.0, Reading(10_000, replicas=1))).is_full(MISTRAL, "low", 1.0)  # no limit


def test_what_was_sent_since_the_reading_counts_once_for_each_worker() -> None:
    made = pressure((0.9, Reading(50, replicas=1, total=50)), (1.0, Reading(50, replicas=1, total=50)), workers=2)
    for n in range(10):
        made.sent(NAME, 1.0 + n / 100)
    assert made.under_way(NAME, 1.1) == 70
    made.read(Readings(1.045, {NAME: {"": Reading(60, replicas=1, total=60)}}))
    assert made.under_way(NAME, 1.045) == 70  # five were sent before the reading and are in it


def test_in_a_steady_state_as_many_have_come_as_have_gone() -> None:
    """500 requests a second that take 0.2 s: 100 are under way, whenever one looks."""
    made = Pressure(1)
    for tick in range(40):
        at = 1 + tick / 10
        made.read(Readings(at, {NAME: {"": Reading(100, replicas=1, total=100 + 50 * tick)}}))
        for n in range(1, 26):
            made.sent(NAME, at + n / 500)
    assert abs(made.under_way(NAME, at + 0.05) - 100) <= 1


def test_a_burst_for_a_model_that_answers_at_once_is_no_load() -> None:
    made = pressure(*((1 + tick / 10, Reading(0, replicas=1, total=10 * tick)) for tick in range(5)))
    for _ in range(1000):
        made.sent(NAME, 1.45)
    assert full_for(made, 1.45) == []


def test_the_first_burst_is_sent_on_and_seen_in_the_next_reading() -> None:
    made = pressure((1.0, Reading(0, replicas=1)))
    for _ in range(100):
        made.sent(NAME, 1.01)
    assert full_for(made, 1.05) == []
    made.read(Readings(1.1, {NAME: {"": Reading(100, replicas=1, total=100)}}))
    assert full_for(made, 1.1) == ["low", "normal"]


def test_a_model_that_gets_slower_fills_up() -> None:
    made = pressure(*((1 + tick / 10, Reading(0, replicas=1, total=10 * tick)) for tick in range(5)))
    for tick in range(10):  # nothing ends any more
        made.read(Readings(1.5 + tick / 10, {NAME: {"": Reading(50, replicas=1, total=90)}}))
    for _ in range(60):
        made.sent(NAME, 2.42)
    assert full_for(made, 2.45) == ["low", "normal"]


def test_a_replica_that_is_gone_takes_its_total_along_and_nothing_ends_backwards() -> None:
    made = pressure((1.0, Reading(10, 2, total=1000)), (1.1, Reading(10, 1, total=400)))
    assert made.under_way(NAME, 1.2) == 10


def test_the_other_gateways_requests_count_too() -> None:
    made = pressure((1.0, Reading(50, replicas=1)))
    made.elsewhere({NAME: 50, "other": 1000}, 1.0)
    assert full_for(made) == ["low", "normal"]
    assert made.in_flight(1.0) == {NAME: 50}  # what they are told is ours alone


def test_a_model_that_envoy_does_not_know_any_more_is_forgotten() -> None:
    made = pressure((1.0, Reading(1000, replicas=1)))
    made.read(Readings(1.1, {}))
    assert full_for(made, 1.1) == []
    assert made.in_flight(1.1) == {}


def test_memory_is_bounded_where_no_reading_comes_any_more() -> None:
    made = pressure((0.9, Reading(1, replicas=1, total=1)), (1.0, Reading(1, replicas=1, total=1)))
    for n in range(20_000):
        made.sent(NAME, 2.0 + n)
    assert made.under_way(NAME, 3.0) == 10_001


def arms(at: float, stable: Reading, canary: Reading) -> Readings:
    return Readings(at, {NAME: {"stable": stable, "canary": canary}})


def test_the_arm_that_is_filled_first_says_how_many_replicas_count() -> None:
    """One replica each, nine requests of ten to stable: the canary's replica takes next to nothing off it."""
    made = Pressure(1)
    for tick in range(50):
        made.read(arms(1 + tick / 10, Reading(90, 1, total=90 * tick), Reading(10, 1, total=10 * tick)))
    assert round(made.room(MODEL, 5.9)) == round(100 / 0.9)
    for tick in range(50, 100):  # the canary gets nothing any more
        made.read(arms(1 + tick / 10, Reading(90, 1, total=90 * tick), Reading(0, 1, total=490)))
    assert round(made.room(MODEL, 10.9), -1) == 100


def test_without_requests_every_arm_counts() -> None:
    made = Pressure(1)
    made.read(arms(1.0, Reading(0, 3, total=5), Reading(0, 1, total=5)))
    assert made.room(MODEL, 1.0) == 400


def test_what_others_said_too_long_ago_is_nothing() -> None:
    """The store is away, or theirs is: their requests have ended since."""
    made = pressure((1.0, Reading(50, replicas=1)), (10.0, Reading(50, replicas=1)))
    made.elsewhere({NAME: 500}, 7.1)
    assert made.under_way(NAME, 10.0) == 550
    assert made.under_way(NAME, 10.2) == 50


def test_who_does_not_know_says_nothing_to_the_others() -> None:
    made = pressure((1.0, Reading(50, replicas=1)))
    assert made.in_flight(4.1) == {}
    assert made.room(MODEL, 4.1) == 0


def test_a_model_that_is_back_after_a_reading_without_it_has_not_just_answered_all_it_ever_did() -> None:
    made = Pressure(1)
    for at, count in ((1.0, 60), (1.1, 60), (1.2, 0), (1.3, 60), (1.4, 60)):
        made.read(Readings(at, {NAME: {"": Reading(count, 1, total=100_000)}} if count else {}))
    assert made.under_way(NAME, 1.49) == 60
