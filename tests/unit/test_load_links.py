"""What the load generator reads off an answer, however its bytes are cut."""

import pytest
from links import Answer, Link

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx-llm-cache: %b\r\ntransfer-encoding: chunked\r\n\r\n"
EVENTS = [
    b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"Hello"}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":" you"}}]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":11,"total_tokens":13,"completion_tokens":2}}\n\n',
    b"data: [DONE]\n\n",
]


class Transport:
    """Takes what is written; there is no server."""

    def __init__(self) -> None:
        self.closed = False

    def write(self, data: bytes) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    abort = close


class Owner:
    def __init__(self) -> None:
        self.ends: list[Answer] = []
        self.losses: list[Answer | None] = []
        self.begun = 0
        self.events = 0
        self.gaps: list[float] = []

    def connected(self, link: Link) -> None: ...

    def began(self, _link: Link) -> None:
        self.begun += 1

    def heard(self, events: int, gap: float) -> None:
        self.events += events
        self.gaps += [gap] if gap else []

    def ended(self, _link: Link, answer: Answer, _now: float) -> None:
        self.ends.append(answer)

    def lost(self, _link: Link, answer: Answer | None) -> None:
        self.losses.append(answer)


def chunked(events: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events) + b"0\r\n\r\n"


def read(pieces: list[bytes], *, stream: bool = True) -> tuple[Owner, Transport]:
    owner, transport = Owner(), Transport()
    link = Link(owner)
    link.connection_made(transport)  # type: ignore[arg-type]
    link.ask(0, b"", stream=stream)
    for piece in pieces:
        link.data_received(piece)
    return owner, transport


def test_a_stream_is_read_the_same_wherever_it_is_cut() -> None:
    whole = HEAD % b"miss" + chunked(EVENTS)
    for at in range(1, len(whole)):
        owner, _ = read([whole[:at], whole[at:]])
        (answer,) = owner.ends
        assert answer.wrong(stream=True) == "", at
        assert answer.tokens(stream=True) == (11, 2), at
        assert (answer.events, owner.events, owner.begun) == (5, 5, 1), at
    owner, _ = read([whole[at : at + 1] for at in range(len(whole))])
    assert owner.ends[0].tokens(stream=True) == (11, 2)
    assert owner.events == 5


def test_the_first_token_is_the_first_event_that_says_something() -> None:
    owner, _ = read([HEAD % b"miss" + chunked(EVENTS[:1])[:-5]])
    assert not owner.begun
    owner, _ = read([HEAD % b"miss" + chunked(EVENTS[:2])[:-5]])
    assert owner.begun == 1


def test_gaps_run_from_the_first_token_on_and_events_that_come_together_make_one() -> None:
    whole = [HEAD % b"miss", *(chunked([event])[:-5] for event in EVENTS[:2]), chunked(EVENTS[2:])]
    owner, _ = read(whole)
    assert len(owner.gaps) == 1


def test_tokens_are_counted_where_the_stream_does_not_say() -> None:
    owner, _ = read([HEAD % b"miss" + chunked([*EVENTS[:3], EVENTS[4]])])
    assert owner.ends[0].tokens(stream=True) == (0, 2)


@pytest.mark.parametrize(("word", "hit"), [(b"hit", True), (b"miss", False), (b"bypass", False)])
def test_a_hit_is_what_the_answer_calls_one(word: bytes, hit: bool) -> None:
    owner, _ = read([HEAD % word + chunked(EVENTS)])
    assert owner.ends[0].hit is hit


@pytest.mark.parametrize(
    ("events", "why"),
    [
        (EVENTS[:4], "a stream without its end"),
        ([*EVENTS[:2], b'data: {"error":{"message":"broken"}}\n\n'], "an error in the stream"),
    ],
)
def test_a_stream_that_ends_early_is_wrong(events: list[bytes], why: str) -> None:
    owner, _ = read([HEAD % b"miss" + chunked(events)])
    assert owner.ends[0].wrong(stream=True) == why


def test_a_refusal_is_told_with_its_code_and_its_wait() -> None:
    body = b'{"error":{"message":"No.","type":"requests","param":null,"code":"rate_limit_exceeded"}}'
    head = b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 3\r\ncontent-length: %d\r\n\r\n" % len(body)
    owner, _ = read([head + body])
    (answer,) = owner.ends
    assert (answer.status, answer.wait) == (429, True)
    assert answer.wrong(stream=True) == "HTTP 429 rate_limit_exceeded"


def test_a_plain_answer_needs_its_usage() -> None:
    for body, why in ((b'{"usage":{"prompt_tokens":1,"completion_tokens":4}}', ""), (b"{}", "an answer without usage")):
        owner, _ = read([b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body], stream=False)
        assert owner.ends[0].wrong(stream=False) == why


def test_a_server_that_closes_is_believed() -> None:
    body = b'{"usage":{}}'
    head = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
    owner, transport = read([head + body], stream=False)
    assert owner.ends
    assert transport.closed


def test_noise_in_place_of_http_closes_the_connection() -> None:
    owner, transport = read([b"SSH-2.0-OpenSSH\r\n"])
    assert not owner.ends
    assert transport.closed
