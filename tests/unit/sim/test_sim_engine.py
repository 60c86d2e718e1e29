"""The scheduler as arithmetic: no clock, no socket."""

from typing import Any

from extproc.sim.engine import Engine, Job, PrefixCache, Timing


class Seen:
    """What the engine reported."""

    def __init__(self) -> None:
        self.queries: list[tuple[int, int]] = []
        self.ends: list[tuple[Job, bool]] = []
        self.rejections = 0

    def queried(self, prompt_tokens: int, cached_tokens: int) -> None:
        self.queries.append((prompt_tokens, cached_tokens))

    def stepped(self, _job: Job, _now: float) -> None: ...

    def ended(self, job: Job, _now: float, *, aborted: bool) -> None:
        self.ends.append((job, aborted))

    def rejected(self) -> None:
        self.rejections += 1


def words(count: int, name: str = "w") -> list[str]:
    return [f"{name}{at}" for at in range(count)]


def job(prompt: int = 4, length: int = 3, *, stream: bool = True, width: int = 1) -> Job:
    return Job([words(prompt)], [length] * width, n=width, max_tokens=length, stream=stream)


def engine(**timing: Any) -> tuple[Engine, Seen]:
    seen = Seen()
    return Engine(Timing(**timing), seen), seen


def take(from_engine: Engine, now: float) -> list[tuple[Job, int, int]]:
    """Advance, deliver, and give back (job, from, to)."""
    news = [(each, each.emitted, each.due) for each in from_engine.advance(now)]
    for each, _, due in news:
        each.emitted = due
    return news


def test_without_timings_an_answer_is_due_at_once() -> None:
    it, _ = engine()
    one = job()
    assert it.submit(one, 1.0)
    assert take(it, 1.0) == [(one, 0, 3)]
    assert one.ended
    assert it.next_at() is None


def test_the_first_token_comes_after_the_prefill_and_the_others_a_decode_apart() -> None:
    it, _ = engine(prefill_s_per_token=0.001, decode_s=0.02)
    one = job(prompt=10)
    it.submit(one, 0.0)
    assert it.next_at() == 0.01
    assert take(it, 0.009) == []
    assert take(it, 0.01) == [(one, 0, 1)]
    assert take(it, 0.031) == [(one, 1, 2)]
    assert take(it, 0.051) == [(one, 2, 3)]
    assert one.ended


def test_a_plain_answer_is_due_once_when_all_of_it_is_there() -> None:
    it, _ = engine(decode_s=0.02)
    one = job(stream=False)
    it.submit(one, 0.0)
    assert it.next_at() == 0.04
    assert take(it, 0.04) == [(one, 0, 3)]


def test_a_late_advance_catches_up_with_several_tokens() -> None:
    it, _ = engine(decode_s=0.02)
    one = job(length=9)
    it.submit(one, 0.0)
    assert take(it, 0.1) == [(one, 0, 6)]


def test_beyond_max_num_seqs_requests_wait_in_order() -> None:
    it, _ = engine(decode_s=1.0, max_num_seqs=2)
    jobs = [job(length=2) for _ in range(4)]
    for at, each in enumerate(jobs):
        it.submit(each, at / 10)
    assert (it.running, it.waiting) == (2, 2)
    take(it, 1.0)
    assert [each.started for each in jobs[2:]] == [1.0, 0.0]
    take(it, 1.1)
    assert jobs[3].started == 1.1


def test_all_choices_of_a_request_take_a_slot_each() -> None:
    it, _ = engine(decode_s=1.0, max_num_seqs=4)
    it.submit(job(width=3), 0.0)
    it.submit(job(width=2), 0.0)
    assert (it.running, it.waiting) == (3, 2)


def test_more_than_max_num_queued_reqs_are_turned_away() -> None:
    it, seen = engine(decode_s=1.0, max_num_seqs=1, max_num_queued_reqs=2)
    assert [it.submit(job(), 0.0) for _ in range(3)] == [True, True, False]
    assert seen.rejections == 1


def test_an_aborted_request_frees_its_slot_at_once() -> None:
    it, seen = engine(decode_s=1.0, max_num_seqs=1)
    first, second, third = job(), job(), job()
    for each in (first, second, third):
        it.submit(each, 0.0)
    it.abort(second, 0.1)
    it.abort(first, 0.2)
    it.abort(first, 0.3)
    assert third.started == 0.2
    assert seen.ends == [(second, True), (first, True)]
    assert [each for each, *_ in take(it, 0.2)] == [third]


def test_a_known_prefix_shortens_the_prefill() -> None:
    it, seen = engine(prefill_s_per_token=0.001)
    first, second = job(prompt=40), job(prompt=40)
    it.submit(first, 0.0)
    take(it, 1.0)
    it.submit(second, 1.0)
    assert seen.queries == [(40, 0), (40, 32)]
    assert round(second.first_at - 1.0, 6) == 0.008


def test_without_prefix_caching_nothing_is_known() -> None:
    it, seen = engine(prefix_caching=False)
    for _ in range(2):
        it.submit(job(prompt=40), 0.0)
    assert seen.queries == [(40, 0), (40, 0)]


def test_the_prefix_cache_knows_blocks_only_behind_the_same_beginning() -> None:
    cache = PrefixCache(100)
    cache.take(words(64))
    assert cache.take(words(48) + words(16, "x")) == 48
    assert cache.take(words(16, "x") + words(48)) == 0


def test_the_last_prompt_token_is_always_computed() -> None:
    cache = PrefixCache(100)
    cache.take(words(32))
    assert cache.take(words(32)) == 16


def test_the_least_recently_used_blocks_make_room() -> None:
    cache = PrefixCache(4)
    cache.take(words(33, "a"))
    cache.take(words(33, "b"))
    assert cache.take(words(33, "a")) == 32
    cache.take(words(33, "c"))
    assert cache.take(words(33, "b")) == 0


def test_the_kv_cache_fills_with_prompt_and_answer() -> None:
    it, _ = engine(decode_s=1.0, num_gpu_blocks=10)
    it.submit(job(prompt=16, length=20), 0.0)
    assert it.kv_usage == 0.1
    take(it, 5.0)
    assert it.kv_usage == 0.2
