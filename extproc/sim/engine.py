"""Who runs, who waits, and when the next token is due: vLLM's scheduler as arithmetic.

Pure: `now` (monotonic seconds) is an argument, and what is due comes back as a list. It must not know what a token
says or where it goes. The model: a request that runs takes `prefill_s_per_token` for each prompt token that the
prefix cache does not hold, then a token every `decode_s`; at most `max_num_seqs` sequences run, the rest wait in
order of arrival. Requests do not slow each other down.
"""

import heapq
from collections import OrderedDict, deque
from typing import Any, Protocol

import msgspec

BLOCK_TOKENS = 16


class Timing(msgspec.Struct, frozen=True):
    prefill_s_per_token: float = 0.0
    decode_s: float = 0.0
    max_num_seqs: int = 256
    max_num_queued_reqs: int = 0  # as vLLM counts: waiting and running; 0 = no limit
    num_gpu_blocks: int = 8192
    prefix_caching: bool = True


class Job:
    """One request inside the engine: `width` sequences that step together."""

    __slots__ = (
        "arrived", "cached_tokens", "created_tokens", "due", "emitted", "ended", "first_at", "last_at", "lengths",
        "longest", "max_tokens", "n", "owner", "prompt_tokens", "prompts", "reasons", "started", "stream", "width",
    )  # fmt: skip

    def __init__(self, prompts: list[list[str]], lengths: list[int], *, n: int, max_tokens: int, stream: bool) -> None:
        self.prompts = prompts
        self.lengths = lengths  # completion tokens of each sequence
        self.longest = max(lengths, default=0)
        self.width = len(lengths)
        self.n = n
        self.max_tokens = max_tokens
        self.stream = stream
        self.prompt_tokens = sum(map(len, prompts))
        self.cached_tokens = 0
        self.created_tokens = 0
        self.reasons: list[str] = []  # finish reason of each sequence
        self.owner: Any = None
        self.arrived = self.started = self.first_at = self.last_at = 0.0
        self.emitted = 0  # tokens of each sequence that were reported by an earlier advance
        self.due = 0  # tokens of each sequence that are due now
        self.ended = False

    def tokens(self, upto: int) -> int:
        """Completion tokens over all sequences once each has `upto`."""
        return upto if self.width == 1 else sum(min(upto, length) for length in self.lengths)


class Observer(Protocol):
    """What the engine reports as it happens; metrics.py implements it."""

    def queried(self, prompt_tokens: int, cached_tokens: int) -> None: ...

    def stepped(self, job: Job, now: float) -> None: ...

    def ended(self, job: Job, now: float, *, aborted: bool) -> None: ...

    def rejected(self) -> None: ...


class PrefixCache:
    """Blocks of 16 tokens, each hashed with all before it; the least recently used go first."""

    def __init__(self, blocks: int) -> None:
        self._blocks = blocks
        self._held: OrderedDict[int, None] = OrderedDict()

    def take(self, tokens: list[str]) -> int:
        """Return how many leading tokens were held, and hold all of them from now on."""
        held, parent, hits, missed = self._held, 0, 0, False
        for start in range(0, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
            parent = hash((parent, *tokens[start : start + BLOCK_TOKENS]))
            if parent in held:
                held.move_to_end(parent)
                hits += not missed
            else:
                missed = True
                held[parent] = None
        while len(held) > self._blocks:
            held.popitem(last=False)
        return min(hits, max(0, len(tokens) - 1) // BLOCK_TOKENS) * BLOCK_TOKENS


class Engine:
    def __init__(self, timing: Timing, observer: Observer) -> None:
        self.timing = timing
        self._observer = observer
        self._cache = PrefixCache(timing.num_gpu_blocks)
        self._waiting: deque[Job] = deque()
        self._running: set[Job] = set()
        self._running_seqs = 0
        self._agenda: list[tuple[float, int, Job]] = []
        self._serial = 0

    @property
    def running(self) -> int:
        return self._running_seqs

    @property
    def waiting(self) -> int:
        return sum(job.width for job in self._waiting)

    @property
    def kv_usage(self) -> float:
        """Share of the cache's blocks that running sequences hold."""
        used = sum(_blocks(job) for job in self._running)
        return min(1.0, used / self.timing.num_gpu_blocks)

    def overflows(self, width: int) -> bool:
        """Say whether vLLM would turn away so many more sequences."""
        limit = self.timing.max_num_queued_reqs
        return bool(limit) and self._running_seqs + self.waiting + width > limit

    def submit(self, job: Job, now: float) -> bool:
        """Take the job in; False if the queue is full."""
        if self.overflows(job.width):
            self._observer.rejected()
            return False
        job.arrived = now
        if self._waiting or not self._fits(job):
            self._waiting.append(job)
        else:
            self._start(job, now)
        return True

    def next_at(self) -> float | None:
        """When advance has something to do, if ever."""
        return self._agenda[0][0] if self._agenda else None

    def advance(self, now: float) -> list[Job]:
        """Return the jobs with tokens due: those from `emitted` to `due`. A job with `ended` set is over.

        The caller sets `emitted = due` once it has delivered them.
        """
        news: list[Job] = []
        agenda = self._agenda
        while agenda and agenda[0][0] <= now:
            job = heapq.heappop(agenda)[2]
            if job.ended:
                continue
            self._step(job, now)
            news.append(job)
        return news

    def abort(self, job: Job, now: float) -> None:
        """Forget the job at once, wherever it is."""
        if job.ended:
            return
        job.ended = True
        if job in self._running:
            self._release(job)
        else:
            self._waiting.remove(job)
        self._observer.ended(job, now, aborted=True)
        self._start_waiting(now)

    def _fits(self, job: Job) -> bool:
        return not self._running or self._running_seqs + job.width <= self.timing.max_num_seqs

    def _start(self, job: Job, now: float) -> None:
        job.started = now
        if self.timing.prefix_caching:
            job.cached_tokens = sum(self._cache.take(prompt) for prompt in job.prompts)
            whole = sum(len(prompt) // BLOCK_TOKENS * BLOCK_TOKENS for prompt in job.prompts)
            job.created_tokens = max(0, whole - job.cached_tokens)
        self._observer.queried(job.prompt_tokens, job.cached_tokens)
        job.first_at = now + (job.prompt_tokens - job.cached_tokens) * self.timing.prefill_s_per_token
        self._running.add(job)
        self._running_seqs += job.width
        steps = 0 if job.stream else max(0, job.longest - 1)
        self._plan(job, job.first_at + steps * self.timing.decode_s)

    def _plan(self, job: Job, at: float) -> None:
        self._serial += 1
        heapq.heappush(self._agenda, (at, self._serial, job))

    def _step(self, job: Job, now: float) -> None:
        decode_s = self.timing.decode_s
        due = job.longest
        if job.stream and decode_s:
            due = min(due, int((now - job.first_at) / decode_s + 1e-6) + 1)
        job.due = due
        self._observer.stepped(job, now)
        job.last_at = now
        if due < job.longest:
            self._plan(job, job.first_at + due * decode_s)
            return
        job.ended = True
        self._release(job)
        self._observer.ended(job, now, aborted=False)
        self._start_waiting(now)

    def _release(self, job: Job) -> None:
        self._running.remove(job)
        self._running_seqs -= job.width

    def _start_waiting(self, now: float) -> None:
        while self._waiting and self._fits(self._waiting[0]):
            self._start(self._waiting.popleft(), now)


def _blocks(job: Job) -> int:
    return sum(-(-(len(prompt) + job.emitted) // BLOCK_TOKENS) for prompt in job.prompts) * job.n
