"""The request log: its lines, and a standard output that takes them or does not."""

import fcntl
import json
import os
import select
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit_rig import receipt, ticket

from extproc.chat import Usage
from extproc.receipt import UNDECIDED, Charge
from extproc.request_log import RequestLog, line

TRACE = "0af7651916cd43dd8448eb211c80319c"
EXACT = Charge(Usage(13, 4, 8), exact=True, estimated=False)
NOTHING = Charge(Usage(), exact=False, estimated=False)


def test_a_line_tells_who_what_where_how_long_and_how_much() -> None:
    made = receipt(
        ticket(stream=True, trace=f"00-{TRACE}-00f067aa0ba902b7-01"),
        start=1_795_461_840.25,
        duration=2.0,
        first_byte=0.5,
        overhead=0.0012344,
        upstream="outbound|8000|canary|mistral.llm.svc.cluster.local",
        request_id="x-1",
        peer="10.0.0.7:8000",
        attempts=2,
        flags="UF",
        details="via_upstream",
    )
    assert json.loads(line(made, EXACT, 7)) == {
        "kind": "request",
        "time": "2026-11-23T19:24:02.250000Z",
        "request_id": "x-1",
        "trace_id": TRACE,
        "tenant": "acme",
        "user": "ann",
        "key_id": "key_1",
        "model": "mistral",
        "arm": "canary",
        "endpoint": "chat",
        "stream": True,
        "status": 200,
        "reason": "",
        "cache": "miss",
        "prompt_tokens": 13,
        "completion_tokens": 4,
        "cached_tokens": 8,
        "estimated": False,
        "cost_micros": 7,
        "ttft_ms": 500.0,
        "duration_ms": 2000.0,
        "overhead_ms": 1.234,
        "upstream": "10.0.0.7:8000",
        "attempts": 2,
        "flags": "UF",
        "details": "via_upstream",
    }


def test_what_there_is_no_time_of_is_null() -> None:
    plain = json.loads(line(receipt(ticket()), EXACT, 7))
    assert (plain["ttft_ms"], plain["overhead_ms"], plain["trace_id"]) == (None, None, "")


def test_a_request_that_envoy_ended_has_a_line_too() -> None:
    ended = json.loads(
        line(receipt(UNDECIDED, status=413, upstream="", details="request_payload_too_large"), NOTHING, 0)
    )
    assert (ended["status"], ended["tenant"], ended["model"]) == (413, "", "")
    assert ended["details"] == "request_payload_too_large"


@given(st.text(), st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_a_line_is_one_line_whatever_is_in_it(text: str, start: float, duration: float) -> None:
    made = line(receipt(ticket(user=text), start=start, duration=min(max(duration, 0), 1e9)), EXACT, 7)
    assert b"\n" not in made
    assert json.loads(made)["user"] == text


# --- where lines go ---------------------------------------------------------------------------------------------------


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            continue


def numbered(count: int, size: int = 500) -> list[bytes]:
    return [f"{n:05}".encode() + b"x" * (size - 6) for n in range(count)]


def test_lines_arrive_in_order_each_on_its_own(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    sent = numbered(100)
    assert RequestLog(writer).write(sent) == 0
    assert os.read(reader, 1_000_000).splitlines() == sent


def test_nothing_to_say_is_nothing_written(pipe: tuple[int, int]) -> None:
    assert RequestLog(pipe[1]).write([]) == 0
    assert select.select([pipe[0]], [], [], 0)[0] == []


def test_a_reader_that_stopped_is_not_waited_for_and_what_it_missed_is_counted(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    room = fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)
    sent = numbered(3 * room // 500)
    dropped = RequestLog(writer).write(sent)
    arrived = os.read(reader, 10 * room).splitlines()
    assert arrived == sent[: len(arrived)]
    assert len(arrived) + dropped == len(sent)
    assert 0 < dropped < len(sent)
    assert RequestLog(writer).write(sent[:5]) == 0


def test_an_output_that_is_closed_takes_nothing_and_harms_nobody(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.close(reader)
    assert RequestLog(writer).write(numbered(20)) == 20


def test_lines_of_two_workers_do_not_mix() -> None:
    """No write is larger than what a pipe takes in one piece. A pipe in packet mode shows what was written at once."""
    reader, writer = os.pipe2(os.O_DIRECT)
    sent = numbered(40)
    assert RequestLog(writer).write(sent) == 0
    os.close(writer)
    packets = list(iter(lambda: os.read(reader, 1_000_000), b""))
    os.close(reader)
    assert max(map(len, packets)) <= select.PIPE_BUF
    assert all(packet.endswith(b"\n") for packet in packets)
    assert b"".join(packets).splitlines() == sent
