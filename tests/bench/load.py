"""What a load client is told and what it tells: the two messages between it and the bench. Times in milliseconds."""

import msgspec


class Load(msgspec.Struct, frozen=True):
    """One run of requests that differ only in a number of 16 digits between `head` and `tail`."""

    port: int
    head: bytes
    tail: bytes
    connections: int = 32
    seconds: float = 2.0
    count: int = 0  # end after so many requests; 0 = after `seconds`
    first: int = 0  # the number in the first request
    pool: int = 0  # numbers repeat after so many; 0 = never
    rate: float = 0.0  # requests a second at fixed due times; 0 = each connection as fast as it is answered
    stream: bool = False
    ramp_seconds: float = 0.0  # connections begin one after the other over this time
    status: int = 200
    needle: bytes = b'"usage"'  # stands in every right answer


class Tally(msgspec.Struct):
    """What came of it. Latency runs from the due time in an open loop, else from the write."""

    requests: int
    failed: int
    failure: str  # the first one, in words
    per_second: float
    p50: float
    p99: float
    cpu_us: float  # of the client itself, a request
    events: int = 0  # of streams
    events_per_second: float = 0.0  # between the ramp's end and the last start of a stream
    ttft_p50: float = 0.0
    ttft_p95: float = 0.0
