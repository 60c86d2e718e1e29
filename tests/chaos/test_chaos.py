"""The short form of `make chaos`: the faults that must cost nobody a request, and those that end a process."""

from collections.abc import Iterator

import pytest
from faults import BY_NAME, FAULTS, drawn
from stack_rig import Platform
from trial import stage, trial

pytestmark = pytest.mark.local


@pytest.fixture(scope="module")
def platform_to_break(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with stage(tmp_path_factory.mktemp("chaos")) as platform:
        yield platform


@pytest.mark.parametrize(
    "name",
    ["rolling restart", "configuration changed", "worker killed", "Envoy killed", "Valkey killed", "replica killed"],
)
def test_a_fault_costs_what_was_promised_and_the_books_agree(platform_to_break: Platform, name: str) -> None:
    verdict = trial(platform_to_break, name, [(0.0, BY_NAME[name])])
    assert verdict.broken == ()
    assert verdict.requests > 200


def test_a_seed_draws_the_same_faults_again() -> None:
    assert drawn(7, 60) == drawn(7, 60)
    assert drawn(7, 60) != drawn(8, 60)
    assert {fault for seed in range(20) for _, fault in drawn(seed, 60)} == set(FAULTS)


def test_every_fault_has_a_name_of_its_own_and_says_what_it_does() -> None:
    assert len(BY_NAME) == len(FAULTS)
    assert all(fault.what for fault in FAULTS)
