"""Parts that die, hang and come back, under traffic. Who may fail is counted, and afterwards the counters say what the
clients saw: nothing twice, nothing lost, nothing reserved for ever."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import psutil
import pytest
from breaking import at_once, back_again, leave_before_the_answer, leave_when_seen, paused, whole, workers
from raw_http import Reply, connection, one, post, read, send
from stack_rig import Caller, Platform, eventually, health, running, write_config
from traffic import Traffic, body

from extproc.local.stack import Settings

pytestmark = pytest.mark.local
IDLE_SECONDS = 2


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform for these tests; each leaves it as it found it. Its Valkey keeps what it acknowledged."""
    directory = tmp_path_factory.mktemp("victim")
    config = write_config(directory / "llm-mesh.yaml", lambda text: text.update(down_seconds=1))
    settings = Settings(
        directory,
        config=config,
        drain_seconds=1.0,
        upstream_idle_seconds=IDLE_SECONDS,
        valkey=("--appendonly", "yes", "--appendfsync", "always"),
    )
    with running(settings) as platform:
        yield platform


@pytest.fixture
def caller(victim: Platform) -> Iterator[Caller]:
    with Caller(victim) as caller:
        yield caller


def all_settled(caller: Caller, traffic: Traffic, before: int = 0, seconds: float = 20.0) -> dict[str, int]:
    """The account when nothing is reserved any more and every good answer is in it, after `before` earlier ones."""

    deadline = time.monotonic() + seconds
    while True:
        account: dict[str, int] = caller.account()
        reserved = caller.reserved() // 2
        if account["requests"] - account["errors"] >= before + traffic.good() and not reserved:
            return account
        assert time.monotonic() < deadline, f"{traffic.good()} answers; {reserved} still reserved; {account}"
        time.sleep(0.02)


# --- backends ---------------------------------------------------------------------------------------------------------

# What the backend does: headers, fields -> status, error code, whether the answer is whole; completion tokens charged.
FAULTS: dict[str, tuple[list[str], dict[str, Any], int, str | None, bool, int]] = {
    "500": (["x-sim-status: 500"], {}, 500, "internal_error", True, 0),
    "500 for a stream": (["x-sim-status: 500"], {"stream": True}, 500, "internal_error", True, 0),
    "503": (["x-sim-status: 503"], {}, 503, "service_unavailable", True, 0),
    "a proxy's page": (["x-sim-status: 502 html"], {}, 502, "bad_gateway", True, 0),
    "busy": (["x-sim-status: 429"], {}, 429, "rate_limit_exceeded", True, 0),
    "our credentials": (["x-sim-status: 401"], {}, 502, "upstream_refused", True, 0),
    "no answer": (["x-sim-hang: 1"], {}, 504, "timeout", True, 0),
    "no stream": (["x-sim-hang: 1"], {"stream": True}, 504, "timeout", True, 0),
    "too late": ([f"x-sim-delay-ms: {IDLE_SECONDS * 1000 + 500}"], {}, 504, "timeout", True, 0),
    "cut body": (["x-sim-cut-after: 1"], {}, 200, None, False, 5),
    "cut stream": (["x-sim-cut-after: 3"], {"stream": True}, 200, None, False, 2),
    "cut before the first event": (["x-sim-cut-after: 0"], {"stream": True}, 200, None, False, 0),
    "stalled stream": (["x-sim-stall-after: 3"], {"stream": True}, 200, None, False, 2),
    "stalled before the first event": (["x-sim-stall-after: 0"], {"stream": True}, 200, None, False, 0),
    "error event": (["x-sim-error-after: 3"], {"stream": True}, 200, None, True, 4),
}


def test_what_a_failing_backend_does_is_told_in_json_and_charged_as_what_passed(victim: Platform) -> None:
    with contextlib.ExitStack() as stack:
        callers = {name: stack.enter_context(Caller(victim)) for name in FAULTS}
        requests = {n: post(callers[n], body(**fields), *lines) for n, (lines, fields, *_) in FAULTS.items()}
        replies: dict[str, Reply] = at_once({n: partial(one, victim, request) for n, request in requests.items()})
        for name, (_, _, status, code, complete, tokens) in FAULTS.items():
            reply = replies[name]
            assert (name, reply.status, reply.whole) == (name, status, complete)
            assert (name, reply.error["code"] if status >= 400 else None) == (name, code)
            account = callers[name].settled(1)
            assert (name, account["completion_tokens"]) == (name, tokens)
            assert (name, account["errors"]) == (name, int(status >= 400))
            assert (name, account["cost_micros"] > 0) == (name, tokens > 0)
            assert (name, account["estimated"]) == (name, int(tokens > 0))


def test_clients_that_leave_pay_for_what_passed_and_no_more(victim: Platform) -> None:
    late, stall = "x-sim-delay-ms: 1000", "x-sim-stall-after: 3"
    with contextlib.ExitStack() as stack:
        callers = {n: stack.enter_context(Caller(victim)) for n in ("plain", "stream", "in it", "at its end", "after")}
        ends = {"in it": 2, "at its end": 5, "after": 5}
        at_once(
            {
                "plain": partial(leave_before_the_answer, victim, post(callers["plain"], body(), late)),
                "stream": partial(leave_before_the_answer, victim, post(callers["stream"], body(stream=True), late)),
                "in it": partial(
                    leave_when_seen, victim, post(callers["in it"], body(stream=True), stall), b"data:", 3
                ),
                "at its end": partial(
                    leave_when_seen, victim, post(callers["at its end"], body(stream=True)), b"[DONE]"
                ),
                "after": partial(leave_when_seen, victim, post(callers["after"], body(stream=True)), b"\r\n0\r\n\r\n"),
            }
        )
        for name in ("plain", "stream"):
            account = callers[name].settled(1)  # the backend had its prompt
            assert (account["completion_tokens"], account["estimated"], account["errors"]) == (0, 1, 1)
            assert account["prompt_tokens"] > 0
        for name, most in ends.items():
            account = callers[name].settled(1)
            assert (name, account["errors"]) == (name, 0)
            assert (name, account["completion_tokens"] <= most) == (name, True)
            if name != "in it":
                assert (name, account["completion_tokens"], account["estimated"]) == (name, 5, 0)


def test_a_backend_that_is_killed_is_passed_over_and_comes_back(victim: Platform, caller: Caller) -> None:
    stack = victim.stack
    with Traffic(caller, model="llama2") as traffic:
        killed = time.monotonic()
        stack.children["backend-llama2"].kill()
        eventually(lambda: any(o.status == 200 and o.began > killed and o.model == "mistral" for o in traffic.outcomes))
        eventually(lambda: health(victim)["models"]["llama2"] != "up")
        assert health(victim)["status"] == "degraded"
        away = time.monotonic()
        traffic.more(50)
        failed, seconds = len(traffic.failed(away)), time.monotonic() - away
        assert failed <= 4 + 2 * seconds, traffic.failed(
            away
        )  # each worker tries it again once in `down_seconds`, which is one here
        victim.do(stack.restart("backend-llama2"))
        eventually(lambda: whole(victim))
        eventually(lambda: traffic.outcomes[-1].model == "llama2")
    assert {o.status for o in traffic.outcomes} <= {200, 503}
    assert {o.why for o in traffic.failed()} <= {"service_unavailable"}
    print(f"backend killed: {len(traffic.failed())} failed, none {traffic.recovery_seconds(killed):.2f} s later")
    all_settled(caller, traffic)


# --- workers ----------------------------------------------------------------------------------------------------------


def test_a_worker_that_is_killed_takes_only_what_it_was_deciding_with_it(victim: Platform, caller: Caller) -> None:
    with Traffic(caller) as traffic:
        dead = workers(victim)[0]
        killed = time.monotonic()
        dead.kill()
        traffic.more(200)
        eventually(lambda: dead.pid not in health(victim)["workers"]["pids"] and whole(victim))
        traffic.more(50)
    recovery = traffic.recovery_seconds(killed)
    print(f"worker killed: {len(traffic.failed())} failed, none {recovery:.2f} s later")
    assert len(traffic.failed()) <= 4 * 3
    assert {(o.status, o.why) for o in traffic.failed()} <= {(503, "service_unavailable")}
    assert recovery < 1.0
    # Receipts on their way to the dead worker are gone; what they would have settled is swept as charged.
    with contextlib.suppress(AssertionError):
        eventually(lambda: caller.reserved() == 0, 1.5)
    victim.do(victim.store.sweep(0))
    assert caller.reserved() == 0
    account = caller.account()
    assert traffic.good() <= account["requests"] <= len(traffic.outcomes)


def test_workers_restarted_one_after_the_other_fail_no_request_and_lose_no_receipt(
    victim: Platform, caller: Caller
) -> None:
    with Traffic(caller) as traffic:
        for worker in workers(victim):
            worker.send_signal(signal.SIGTERM)
            eventually(lambda worker=worker: worker.pid not in health(victim)["workers"]["pids"] and whole(victim), 20)
            traffic.more(20)
    assert traffic.failed() == []
    account = all_settled(caller, traffic)
    assert (account["requests"], account["errors"]) == (len(traffic.outcomes), 0)


def test_a_worker_that_hangs_holds_up_only_its_own_and_is_passed_over(victim: Platform, caller: Caller) -> None:
    with Traffic(caller, threads=6) as traffic:
        stuck = workers(victim)[0]
        stopped = time.monotonic()
        with paused(stuck):
            eventually(lambda: traffic.failed() or time.monotonic() > stopped + 4, 6)
            calm = time.monotonic()
            traffic.more(100)
        eventually(lambda: whole(victim))
        traffic.more(50)
    print(f"worker stopped: {len(traffic.failed())} failed, none {traffic.recovery_seconds(stopped):.2f} s later")
    assert {(o.status, o.why) for o in traffic.failed()} <= {(503, "service_unavailable"), (504, "timeout")}
    assert len(traffic.failed()) <= 12
    assert max(o.took for o in traffic.failed()) < 3.5 if traffic.failed() else True
    assert traffic.failed(since=calm + 1.0) == []
    with contextlib.suppress(AssertionError):
        eventually(lambda: caller.reserved() == 0, 1.5)
    victim.do(victim.store.sweep(0))
    assert caller.reserved() == 0


def test_a_worker_that_hangs_is_left_by_the_receipts_and_ended(victim: Platform) -> None:
    """Whichever worker has the access log. What was on its way to it is swept later; what comes after is settled."""

    def settles() -> bool:
        with Caller(victim) as fresh:
            if one(victim, post(fresh, body())).status != 200:
                return False
            with contextlib.suppress(AssertionError):
                return bool(eventually(lambda: fresh.reserved() == 0, 1.0))
            return False

    for stuck in workers(victim):
        stuck.suspend()
        began = time.monotonic()
        eventually(settles, 9)
        print(f"receipts are settled again {time.monotonic() - began:.1f} s after a worker hung")
        eventually(lambda stuck=stuck: not stuck.is_running() and whole(victim), 25)
    victim.do(victim.store.sweep(0))


def test_a_supervisor_that_is_killed_leaves_no_worker_to_take_the_next_ones_sockets(
    victim: Platform, caller: Caller
) -> None:
    orphans = workers(victim)
    os.kill(victim.stack.children["processor"].pid, signal.SIGKILL)
    eventually(lambda: not any(orphan.is_running() for orphan in orphans), 5)
    victim.do(victim.stack.restart("processor"))
    eventually(lambda: whole(victim), 15)
    assert [one(victim, post(caller, body())).status for _ in range(10)] == [200] * 10


# --- Valkey -----------------------------------------------------------------------------------------------------------


def known_to_all_workers(caller: Caller, requests: int = 40) -> Caller:
    """Each has seen the key, and all of it is settled."""
    assert [one(caller.platform, post(caller, body())).status for _ in range(requests)] == [200] * requests
    caller.settled(requests)
    return caller


def test_valkey_killed_under_traffic_fails_no_request_and_what_waited_is_settled_once(
    victim: Platform, caller: Caller
) -> None:
    cached = body(temperature=0)
    with contextlib.ExitStack() as stack:
        limits = {"requests_per_minute": 1, "burst_requests": 30}
        limited = known_to_all_workers(stack.enter_context(Caller(victim, limits=limits)), 10)
        capped = known_to_all_workers(stack.enter_context(Caller(victim, limits={"max_in_flight": 60})))
        asker = known_to_all_workers(stack.enter_context(Caller(victim)))
        stranger = stack.enter_context(Caller(victim))
        known_to_all_workers(caller)
        assert one(victim, post(asker, cached)).headers["x-llm-cache"] == "miss"
        asker.settled(41)
        assert one(victim, post(asker, cached)).headers["x-llm-cache"] == "hit"
        with Traffic(caller) as traffic, back_again(victim, "valkey"):
            victim.stack.children["valkey"].kill()
            traffic.more(100)
            eventually(lambda: health(victim)["redis"] == "down")
            assert health(victim)["status"] == "degraded"
            refused = one(victim, post(stranger, body()))
            assert (refused.status, refused.error["code"]) == (503, "service_unavailable")
            answer = one(victim, post(asker, cached))
            assert (answer.status, answer.headers["x-llm-cache"]) == (200, "bypass")
            replies = [one(victim, post(limited, body())) for _ in range(60)]
            statuses = [reply.status for reply in replies]
            assert {r.error["message"] for r in replies if r.status not in {200, 429}} == set()
            assert 15 <= statuses.count(200) <= 30  # each of two workers has half of the limit
            assert {one(victim, post(capped, body())).status for _ in range(100)} == {200}  # one after the other
            victim.do(victim.stack.restart("valkey"))
            eventually(lambda: whole(victim))
            traffic.more(100)
        assert traffic.failed() == []
        account = all_settled(caller, traffic, 40)
        assert (account["requests"], account["errors"]) == (40 + len(traffic.outcomes), 0)
        eventually(lambda: health(victim)["settlement_backlog"] == 0)
        assert one(victim, post(stranger, body())).status == 200
        assert one(victim, post(asker, cached)).headers["x-llm-cache"] == "hit"


def test_valkey_that_hangs_delays_a_request_once_and_then_none(victim: Platform, caller: Caller) -> None:
    known_to_all_workers(caller)
    valkey = psutil.Process(victim.stack.children["valkey"].pid)
    with Traffic(caller) as traffic:
        stopped = time.monotonic()
        with paused(valkey):
            traffic.more(150)
        resumed = time.monotonic()
        eventually(lambda: whole(victim))
        traffic.more(50)
    assert traffic.failed() == []
    hung = [o.took for o in traffic.outcomes if o.began + o.took > stopped and o.began < resumed]
    slow = [took for took in hung if took > 0.09]
    print(f"valkey stopped: {len(slow)} of {len(hung)} waited, {max(hung):.2f} s at most")
    assert max(hung) < 0.6
    assert len(slow) <= 4 * 3 + len(hung) * 0.05
    account = all_settled(caller, traffic, 40)
    assert account["requests"] == 40 + len(traffic.outcomes)


# --- all of it --------------------------------------------------------------------------------------------------------


def test_the_processor_drains_on_sigterm_refuses_in_json_and_comes_back(victim: Platform, caller: Caller) -> None:
    processor = victim.stack.children["processor"]
    with Traffic(caller) as traffic, connection(victim) as slow:
        slow.sendall(post(caller, body(), "x-sim-delay-ms: 1500"))
        traffic.more(20)
        told = time.monotonic()
        os.kill(processor.pid, signal.SIGTERM)
        eventually(traffic.failed)
        first = min(o.began + o.took for o in traffic.failed())
        assert first - told > 0.3  # it serves on while it drains
        assert [reply.status for reply in read(slow)] == [200]  # decided before: it does not need us any more
        eventually(lambda: processor.ended, 20)
        assert [reply.status for reply in send(victim, post(caller, body()))] == [503]
        victim.do(victim.stack.restart("processor"))
        eventually(lambda: traffic.outcomes[-1].status == 200)
        back = time.monotonic()
        traffic.more(50)
    assert {(o.status, o.why) for o in traffic.failed()} == {(503, "service_unavailable")}
    assert traffic.failed(since=back + 0.5) == []
    # What Envoy sends while the last worker closes is lost: a processor should end after its Envoy.
    eventually(lambda: caller.account()["requests"] >= traffic.good() - 60)
    with contextlib.suppress(AssertionError):
        eventually(lambda: caller.reserved() == 0, 1.5)
    victim.do(victim.store.sweep(0))
    assert caller.reserved() == 0


def test_envoy_killed_leaves_nothing_that_a_sweep_does_not_close(victim: Platform, caller: Caller) -> None:
    stack = victim.stack
    with Traffic(caller) as traffic:
        stack.children["envoy"].kill()
        eventually(traffic.failed)
        victim.do(stack.restart("envoy"))
        traffic.more(50)
    with contextlib.suppress(AssertionError):
        eventually(lambda: caller.reserved() == 0, 1.5)
    victim.do(victim.store.sweep(0))
    assert caller.reserved() == 0
    account = caller.account()
    assert account["requests"] <= len(traffic.outcomes)
    assert account["completion_tokens"] >= 5 * (traffic.good() - 200)  # receipts of one flush may be gone
