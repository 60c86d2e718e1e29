"""Bytes to the platform and answers back, for requests that no client library would send."""

import contextlib
import json
import socket
import ssl
import struct
import time
from collections.abc import Iterable, Iterator
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import httptools
import msgspec
from stack_rig import Caller, Platform

CHAT = "/v1/chat/completions"


class Reply(msgspec.Struct):
    """One HTTP answer. Names of headers are lower case, values latin-1."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool  # its end was seen

    @property
    def error(self) -> dict[str, Any]:
        """The error object, whose shape is checked."""
        assert self.headers.get("content-type") == "application/json", self
        error: dict[str, Any] = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}, error
        assert error["message"]
        assert isinstance(error["type"], str)
        return error


class _Parser:
    """Answers out of bytes; several may follow each other."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self._parser = httptools.HttpResponseParser(self)

    @property
    def finished(self) -> int:
        return sum(reply.whole for reply in self.replies)

    def feed(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.replies.append(Reply(0, {}, b"", whole=False))

    def on_header(self, name: bytes, value: bytes) -> None:
        self.replies[-1].headers[name.decode().lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.replies[-1].status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self.replies[-1].body += body

    def on_message_complete(self) -> None:
        if self.replies[-1].status == 100:
            self.replies.pop()
        else:
            self.replies[-1].whole = True


@contextlib.contextmanager
def connection(platform: Platform, *, tls: str = "") -> Iterator[socket.socket]:
    """A socket to Envoy; `tls` is the protocol to ask for by ALPN."""
    port = platform.stack.https_port if tls else platform.stack.http_port
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not tls:
            yield plain
            return
        context = ssl.create_default_context(cafile=str(platform.stack.ca_file))
        context.set_alpn_protocols([tls])
        with context.wrap_socket(plain, server_hostname="localhost") as secure:
            yield secure


def read(sock: socket.socket, count: int = 1, seconds: float = 10.0) -> list[Reply]:
    """Answers until there are `count`, or the other side closed, or the time is over."""
    parser = _Parser()
    deadline = time.monotonic() + seconds
    with contextlib.suppress(ConnectionError, TimeoutError):
        while parser.finished < count:
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            data = sock.recv(65536)
            if not data:
                break
            parser.feed(data)
    return parser.replies


def send(platform: Platform, data: bytes, count: int = 1) -> list[Reply]:
    with connection(platform) as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(data)
        return read(sock, count)


def one(platform: Platform, data: bytes) -> Reply:
    (reply,) = send(platform, data)
    return reply


def head(caller: Caller | None, line: str = f"POST {CHAT} HTTP/1.1", *headers: str | bytes) -> bytes:
    """A request head: Host, the caller's key and JSON unless `headers` say so themselves."""
    lines = [line.encode("latin-1"), *(h if isinstance(h, bytes) else h.encode("latin-1") for h in headers)]
    names = {each.partition(b":")[0].lower() for each in lines[1:]}
    if b"host" not in names:
        lines.append(b"Host: localhost")
    if caller is not None and b"authorization" not in names:
        lines.append(b"Authorization: Bearer " + caller.key.encode())
    if b"content-type" not in names and line.startswith("POST"):
        lines.append(b"Content-Type: application/json")
    return b"\r\n".join(lines) + b"\r\n\r\n"


def post(caller: Caller | None, body: bytes, *headers: str | bytes, path: str = CHAT) -> bytes:
    return head(caller, f"POST {path} HTTP/1.1", f"Content-Length: {len(body)}", *headers) + body


def chunked(body: bytes, size: int = 65536) -> bytes:
    """A body in chunks, with its end."""
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


# --- HTTP/2 -----------------------------------------------------------------------------------------------------------


def h2_headers(caller: Caller | None, **pseudo: str) -> list[tuple[str, str]]:
    """A POST of JSON; `pseudo` changes :method, :path, :scheme or :authority."""
    lines = {"method": "POST", "path": CHAT, "scheme": "http", "authority": "localhost", **pseudo}
    headers = [(":" + name, value) for name, value in lines.items()]
    if caller is not None:
        headers.append(("authorization", "Bearer " + caller.key))
    return [*headers, ("content-type", "application/json")]


def h2_one(
    platform: Platform,
    headers: list[tuple[str, str]],
    body: Iterable[bytes] = (),
    trailers: list[tuple[str, str]] | None = None,
    *,
    tls: bool = False,
) -> Reply | None:
    """One request on a connection of its own, nothing of it checked here. None: the stream was reset."""
    config = h2.config.H2Configuration(
        header_encoding="latin-1", validate_outbound_headers=False, normalize_outbound_headers=False
    )
    with connection(platform, tls="h2" if tls else "") as sock:
        client = h2.connection.H2Connection(config)
        client.initiate_connection()
        client.send_headers(1, headers)
        stream = _H2Stream(sock, client)
        for piece in body:
            if not stream.write(piece):
                break
        if stream.open:
            if trailers:
                client.send_headers(1, trailers, end_stream=True)
            else:
                client.end_stream(1)
        while stream.reading:
            stream.step()
        return stream.reply if stream.reply.whole else None


class _H2Stream:
    def __init__(self, sock: socket.socket, client: h2.connection.H2Connection) -> None:
        self.reply = Reply(0, {}, b"", whole=False)
        self.open = True  # for writing
        self.reading = True
        self._sock, self._client = sock, client

    def write(self, data: bytes) -> bool:
        """As flow control allows; False if the other side wants no more."""
        client = self._client
        while data and self.open:
            room = min(client.local_flow_control_window(1), client.max_outbound_frame_size, len(data))
            if room > 0:
                client.send_data(1, data[:room])
                data = data[room:]
                self._flush()
            else:
                self.step()
        return self.open

    def step(self) -> None:
        self._flush()
        data = b""
        with contextlib.suppress(ConnectionError):
            data = self._sock.recv(65536)
        if not data:
            self.open = self.reading = False
            return
        for event in self._client.receive_data(data):
            self._note(event)
        self._flush()

    def _flush(self) -> None:
        with contextlib.suppress(ConnectionError):
            self._sock.sendall(self._client.data_to_send())

    def _note(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            self.reply.headers = {str(name): str(value) for name, value in event.headers}
            self.reply.status = int(self.reply.headers[":status"])
        elif isinstance(event, h2.events.DataReceived):
            self.reply.body += event.data
            self._client.acknowledge_received_data(event.flow_controlled_length, 1)
        elif isinstance(event, h2.events.StreamEnded):
            self.reply.whole = True
            self.open = self.reading = False
        elif isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
            self.open = self.reading = False
