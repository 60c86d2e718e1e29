"""What a load generator is told, and what it tells: one Order on its standard input, lines of JSON on its output."""

import msgspec
from schedule import Arrivals, Questions
from sums import Summary


class Traffic(msgspec.Struct, frozen=True):
    """Requests of one kind: they differ in a number of 16 digits between `head` and `tail`."""

    name: str
    head: bytes
    tail: bytes
    arrivals: Arrivals
    questions: Questions = Questions()
    stream: bool = True
    may_be_refused: bool = False  # with 429 or 503, and retry-after


class Order(msgspec.Struct, frozen=True):
    """One run against one server."""

    host: str
    port: int
    traffics: tuple[Traffic, ...]
    tls: bool = False
    ca_file: str = ""  # "" = the system's
    patience_seconds: float = 30.0  # an answer that is not whole so long after its due time is an error
    most_connections: int = 15_000

    @property
    def seconds(self) -> float:
        return max(traffic.arrivals.seconds for traffic in self.traffics)


class Progress(msgspec.Struct, frozen=True, tag=True):
    """Once a second."""

    at: float  # seconds since the start
    due: int
    answered: int  # well
    refused: int
    failed: int
    asking: int  # sent, and not at their end
    streaming: int  # those of them whose first token is here
    connections: int
    chunks: int  # events of streams
    cpu_seconds: float  # of the generator
    ttft_p95: float | None  # ms, of the last second


class Result(msgspec.Struct, frozen=True, tag=True):
    summary: Summary
    cpu_seconds: float  # of the generator
    connections: int  # opened in all
    held: int  # requests that had to wait because `most_connections` were open
    most_asking: int
    most_streaming: int


Line = Progress | Result
