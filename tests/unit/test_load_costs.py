"""What a stream and a chunk cost, from samples a second apart."""

import pytest
from costs import Sample, columns, cost, plateau, rows
from orders import Progress

PARTS = ("Envoy", "processor")


def sample(at: float, due: int, answered: int, streaming: int, chunks: int, cpu: float, mb: float = 80.0) -> Sample:
    """Envoy's CPU and memory as given, the processor's a tenth of it."""
    progress = Progress(at, due, answered, 0, 0, due - answered, streaming, due, chunks, 0.0, None)
    return Sample(progress, {"Envoy": cpu, "processor": cpu / 10}, {"Envoy": mb, "processor": mb / 10})


BEFORE = sample(0, 0, 0, 0, 0, 10.0)
RAMP = [sample(1, 500, 0, 490, 0, 10.5, 100), sample(2, 1000, 0, 1000, 1000, 11.0, 120)]
TOGETHER = [sample(at, 1000, 0, 1000, 1000 + 2000 * (at - 2), 11.0 + 0.1 * (at - 2), 130) for at in range(3, 9)]
END = [sample(9, 1000, 600, 400, 14_000, 11.7, 130), sample(10, 1000, 1000, 0, 15_000, 11.8, 130)]


def test_a_plateau_is_the_longest_stretch_in_which_only_chunks_passed() -> None:
    found = plateau([*RAMP, *TOGETHER, *END])
    assert found is not None
    assert (found.seconds, found.streams, found.chunks_per_second) == (6, 1000, 2000)
    assert found.us_per_chunk == pytest.approx({"Envoy": 50, "processor": 5})


@pytest.mark.parametrize("samples", [RAMP, END, TOGETHER[:2]])
def test_without_such_a_stretch_there_is_none(samples: list[Sample]) -> None:
    assert plateau(samples) is None


def test_cpu_is_divided_by_requests_and_by_chunks_and_memory_by_the_most_streams() -> None:
    found = cost(BEFORE, [*RAMP, *TOGETHER, *END], {"Envoy": 12.0, "processor": 1.2}, 1000)
    assert found.us_per_request == pytest.approx({"Envoy": 2000, "processor": 200})
    assert found.us_per_chunk["Envoy"] == pytest.approx(2e6 / 15_000)
    assert found.cores["Envoy"] == pytest.approx(0.2)
    assert found.kilobytes_per_stream["Envoy"] == pytest.approx(40)  # 120 - 80 MB when all 1,000 were open first
    assert found.megabytes_most["Envoy"] == 130


def test_a_few_streams_say_nothing_about_the_memory_of_one() -> None:
    found = cost(BEFORE, [sample(1, 20, 20, 20, 100, 10.1)], {"Envoy": 10.1, "processor": 1.01}, 20)
    assert found.kilobytes_per_stream == {}
    assert "kB a stream" not in [title for title, _, _ in columns(found)]
    assert [row[0] for row in rows(found)] == list(PARTS)
