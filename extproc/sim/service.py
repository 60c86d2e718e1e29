"""Which path does what: requests in, jobs for the engine, answers out, and the one timer that drives all streams.

It joins the pure rooms (asks, text, engine, answers) to connections. No await: a request is taken in when its last
byte is read, and whatever the engine reports as due is written at once.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from extproc.sim import asks, bodies, choices, embeddings, text
from extproc.sim.answers import Head, Writer
from extproc.sim.chat import ChatWriter
from extproc.sim.completions import CompletionWriter
from extproc.sim.engine import Engine, Job, Timing
from extproc.sim.exchange import Exchange
from extproc.sim.http import Connection, Request
from extproc.sim.listings import model_list, record
from extproc.sim.metrics import About, Metrics
from extproc.sim.responses import ResponsesWriter

VERSION = "0.32.0"
_TICK_S = 0.001
_RECORDED = 100
_encode = msgspec.json.encode


class Settings(msgspec.Struct, frozen=True):
    model: str
    served: tuple[str, ...]
    max_model_len: int = 4096
    pooling: bool = False
    prompt_tokens_details: bool = False
    tools: bool = True  # a parser for tool calls
    typical_completion_tokens: int = 128
    seed: int = 0
    timing: Timing = Timing()


class Service:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.metrics = Metrics(About(settings.served[0], settings.max_model_len, settings.timing))
        self._engine = Engine(settings.timing, self.metrics)
        self.metrics.watch(self._engine)
        self._vocabulary = text.Vocabulary()
        self._connections: set[Connection] = set()
        self._records: deque[Request] = deque(maxlen=_RECORDED)
        self._ids = random.Random()  # noqa: S311  ids, not secrets
        self._base_key = text.key_of(settings.served[0], str(settings.seed))
        self._models = model_list(settings.model, settings.served, settings.max_model_len, int(time.time()))
        self._length = choices.Length(settings.max_model_len, settings.typical_completion_tokens)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._pumping = False
        self._emptied: asyncio.Event | None = None
        self.take_down: Callable[[float], None] = lambda _seconds: None
        self._routes = self._table()

    def _table(self) -> dict[str, tuple[str, Callable[[Connection, Request], None]]]:
        routes: dict[str, tuple[str, Callable[[Connection, Request], None]]] = {
            "/health": ("GET", self._empty),
            "/ping": ("GET POST", self._empty),
            "/version": ("GET", lambda c, _: c.respond(200, _encode({"version": VERSION}))),
            "/load": ("GET", lambda c, _: c.respond(200, _encode({"server_load": self._load()}))),
            "/metrics": ("GET", self._scrape),
            "/v1/models": ("GET", lambda c, _: c.respond(200, self._models)),
            "/tokenize": ("POST", self._tokenize),
            "/detokenize": ("POST", self._detokenize),
            "/sim/requests": ("GET DELETE", self._recorded),
            "/sim/down": ("POST", self._down),
        }
        if self._settings.pooling:
            routes["/v1/embeddings"] = ("POST", self._embeddings)
        else:
            routes["/v1/chat/completions"] = ("POST", self._chat)
            routes["/v1/completions"] = ("POST", self._completions)
            routes["/v1/responses"] = ("POST", self._responses)
        return routes

    # What a connection calls.

    def opened(self, connection: Connection) -> None:
        self._connections.add(connection)

    def lost(self, connection: Connection) -> None:
        self._connections.discard(connection)
        exchange: Exchange | None = connection.current
        if exchange is not None and not exchange.finished:
            self._engine.abort(exchange.job, time.monotonic())
            self._pump()
        if self._emptied is not None and not self._connections:
            self._emptied.set()

    def requested(self, connection: Connection, request: Request) -> None:
        faults = request.faults
        path = request.path
        if path.startswith("/v1/") or path.endswith("tokenize"):
            self._records.append(request)
        if faults.hang:
            connection.stall()
            return
        if faults.delay_ms:
            asyncio.get_running_loop().call_later(faults.delay_ms / 1000, self._answer, connection, request)
        else:
            self._answer(connection, request)

    async def drained(self) -> None:
        """Let every connection end with the answer that it is writing, and wait for the last."""
        if self._connections:
            self._emptied = asyncio.Event()
            for connection in list(self._connections):
                connection.retire()
            await self._emptied.wait()

    def _answer(self, connection: Connection, request: Request) -> None:
        if connection.closed:
            return
        try:
            if request.faults.status:
                self._fail(connection, request)
                return
            methods, route = self._route(request)
            if request.method not in methods:
                connection.respond(405, b'{"detail":"Method Not Allowed"}', extra=b"allow: %b\r\n" % methods.encode())
                return
            route(connection, request)
        except bodies.Refusal as refusal:
            self.metrics.served(request.path, request.method, refusal.status)
            connection.respond(refusal.status, refusal.body)
        except bodies.Unreadable:
            connection.respond(400, b'{"detail":"There was an error parsing the body"}')

    def _route(self, request: Request) -> tuple[str, Callable[[Connection, Request], None]]:
        found = self._routes.get(request.path)
        if found is None and request.path.rstrip("/") in self._routes:
            return request.method, self._redirect
        return found or (request.method, lambda c, _: c.respond(404, b'{"detail":"Not Found"}'))

    def _redirect(self, connection: Connection, request: Request) -> None:
        """Leave out the slash at the end, as Starlette does."""
        where = b"location: http://%b%b\r\n" % (request.header(b"host"), request.path.rstrip("/").encode("latin-1"))
        connection.respond(307, b"", b"", extra=where)

    def _fail(self, connection: Connection, request: Request) -> None:
        status = request.faults.status
        if request.faults.html:
            page = b"<html><head><title>%d</title></head><body><h1>%d</h1></body></html>\n" % (status, status)
            connection.respond(status, page, b"text/html")
            return
        kinds = {400: "BadRequestError", 404: "NotFoundError", 503: "Service Unavailable"}
        raise bodies.Refusal(status, "Scripted by x-sim-status.", kinds.get(status, "InternalServerError"))

    # Answers of the engine.

    def _chat(self, connection: Connection, request: Request) -> None:
        body = self._read(_CHAT, request)
        ask = asks.from_chat(body, self._settings.max_model_len, tools=self._settings.tools)
        answers = self._answers(ask, request)
        head = self._head("chatcmpl-", request)
        writer = ChatWriter(ask, answers, head, self._vocabulary)
        self._run(connection, request, self._job(ask, answers), writer)

    def _completions(self, connection: Connection, request: Request) -> None:
        body = self._read(_COMPLETION, request)
        ask = asks.from_completion(body, self._settings.max_model_len, self._token)
        answers = self._answers(ask, request)
        head = self._head("cmpl-", request)
        writer = CompletionWriter(ask, answers, head, self._vocabulary)
        self._run(connection, request, self._job(ask, answers), writer)

    def _responses(self, connection: Connection, request: Request) -> None:
        body = self._read(_RESPONSES, request)
        ask = asks.from_responses(body, self._settings.max_model_len)
        answers = self._answers(ask, request)
        head = self._head("resp_", request)
        room = self._settings.max_model_len - len(ask.prompts[0])
        writer = ResponsesWriter(ask, answers, head, body, min(room, ask.max_tokens or room))
        self._run(connection, request, self._job(ask, answers), writer)

    def _embeddings(self, connection: Connection, request: Request) -> None:
        body = self._read(_EMBEDDING, request)
        inputs = asks.embedding_inputs(body, self._settings.max_model_len, self._token)
        head = self._head("embd-", request)
        job = Job(inputs, [0] * len(inputs), n=1, max_tokens=0, stream=False)
        job.reasons = ["stop"] * len(inputs)
        self._run(connection, request, job, embeddings.EmbeddingWriter(inputs, head, body))

    def _read(self, decoder: msgspec.json.Decoder[Any], request: Request) -> Any:
        kind = request.header(b"content-type").lower().partition(b";")[0]
        if kind != b"application/json":
            words = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
            raise bodies.Refusal(400, words, "Bad Request")
        body = bodies.decode(decoder, request.body)
        if body.model and body.model not in self._settings.served:
            words = f"The model `{body.model}` does not exist."
            if self._settings.pooling:
                raise bodies.Refusal(404, words, "NotFoundError")
            words += f" Valid aliases: {', '.join(self._settings.served)}."
            raise bodies.Refusal(404, words, "NotFoundError", "model")
        body.model = self._settings.served[0]  # whatever it was called, answers give the first name
        return body

    def _head(self, prefix: str, request: Request) -> Head:
        given = request.header(b"x-request-id").decode("latin-1")
        name = given or f"{self._ids.getrandbits(64):016x}"
        return Head(
            prefix + name, int(time.time()), self._settings.served[0], details=self._settings.prompt_tokens_details
        )

    def _answers(self, ask: asks.Ask, request: Request) -> list[text.Answer]:
        key = self._ids.getrandbits(64) if ask.key is None else ask.key
        return choices.answers(ask, request.faults, self._length, key ^ self._base_key)

    def _job(self, ask: asks.Ask, answers: list[text.Answer]) -> Job:
        job = Job(
            ask.prompts,
            [len(answer.pieces) for answer in answers],
            n=ask.n,
            max_tokens=ask.max_tokens or self._settings.max_model_len,
            stream=ask.stream,
        )
        job.reasons = [answer.finish_reason for answer in answers]
        return job

    def _run(self, connection: Connection, request: Request, job: Job, writer: Writer) -> None:
        writer.head.prompt_tokens = job.prompt_tokens
        exchange = Exchange(connection, request, job, writer)
        job.owner = exchange
        if not self._engine.submit(job, time.monotonic()):
            words = (
                "The engine is currently busy and cannot accept new requests. "
                "Please try again later or on a different instance."
            )
            raise bodies.Refusal(503, words, "Service Unavailable")
        self.metrics.served(request.path, "POST", 200)
        connection.current = exchange
        exchange.begin()
        if exchange.finished:
            self._engine.abort(job, time.monotonic())
        self._pump()

    def _pump(self) -> None:
        """Deliver everything that is due, then set the timer for the next."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while news := self._engine.advance(time.monotonic()):
                for job in news:
                    self._deliver(job)
        finally:
            self._pumping = False
        at = self._engine.next_at()
        if at is None or (self._timer is not None and self._timer_at <= at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        wait = max(_TICK_S, at - time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(wait, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._pump()

    def _deliver(self, job: Job) -> None:
        exchange: Exchange = job.owner
        if not job.emitted:
            exchange.writer.caches(job.cached_tokens, job.created_tokens)
        if exchange.finished or exchange.connection.closed:
            return
        if not exchange.deliver() and not job.ended:
            self._engine.abort(job, time.monotonic())

    # Answers that need no engine.

    def _empty(self, connection: Connection, _request: Request) -> None:
        connection.respond(200, b"", b"")

    def _scrape(self, connection: Connection, _request: Request) -> None:
        connection.respond(200, self.metrics.text(), b"text/plain; version=1.0.0; charset=utf-8")

    def _load(self) -> int:
        return self._engine.running + self._engine.waiting

    def _token(self, number: int) -> str:
        return self._vocabulary.text([number])

    def _tokenize(self, connection: Connection, request: Request) -> None:
        body = self._read(_TOKENIZE, request)
        if body.prompt is None and body.messages is None:
            raise bodies.invalid("Object missing required field `prompt`", {})
        tokens = asks.chat_prompt(body.messages) if body.messages else ["<s>", *text.tokenize(body.prompt or "")]
        answer = {
            "count": len(tokens),
            "max_model_len": self._settings.max_model_len,
            "tokens": self._vocabulary.ids(tokens),
            "token_strs": tokens if body.return_token_strs else None,
        }
        connection.respond(200, _encode(answer))

    def _detokenize(self, connection: Connection, request: Request) -> None:
        body = self._read(_DETOKENIZE, request)
        connection.respond(200, _encode({"prompt": self._vocabulary.text(body.tokens)}))

    # The simulator's own routes.

    def _recorded(self, connection: Connection, request: Request) -> None:
        if request.method == "DELETE":
            self._records.clear()
        connection.respond(200, _encode([record(each) for each in self._records]))

    def _down(self, connection: Connection, request: Request) -> None:
        seconds = msgspec.json.decode(request.body or b"{}", type=_Down).seconds
        connection.respond(200, _encode({"seconds": seconds}), extra=b"connection: close\r\n")
        for other in list(self._connections - {connection}):
            other.reset()
        connection.retire()
        self.take_down(seconds)


class _Down(msgspec.Struct):
    seconds: float = 1.0


_CHAT = bodies.decoder(bodies.ChatRequest)
_COMPLETION = bodies.decoder(bodies.CompletionRequest)
_RESPONSES = bodies.decoder(bodies.ResponsesRequest)
_EMBEDDING = bodies.decoder(bodies.EmbeddingRequest)
_TOKENIZE = bodies.decoder(bodies.TokenizeRequest)
_DETOKENIZE = bodies.decoder(bodies.DetokenizeRequest)
