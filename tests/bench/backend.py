"""A model server that answers every request at once with the same words and does not read the prompt.

For the prompts that are too large for the simulated vLLM to split into tokens as fast as the platform passes them on.

    python backend.py PORT
"""

import asyncio
import sys
from typing import Any

import httptools
import uvloop

SERVED = "bench/chat-7b"
_ANSWER = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1795421256,"model":"bench/chat-7b","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"The dog is not amused."},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":50000,"completion_tokens":6,"total_tokens":50006}}'
)
_MODELS = b'{"object":"list","data":[{"id":"bench/chat-7b","object":"model","max_model_len":131072}]}'


class Connection(asyncio.Protocol):
    served = 0

    def __init__(self) -> None:
        self.parser: Any = httptools.HttpRequestParser(self)
        self.transport: Any = None
        self.url = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_message_complete(self) -> None:
        body = self.body()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        self.transport.write(head + body)

    def body(self) -> bytes:
        if self.url == b"/metrics":
            return b'http_requests_total{handler="/v1/chat/completions"} %d\n' % Connection.served
        if self.url == b"/v1/models":
            return _MODELS
        Connection.served += self.url == b"/v1/chat/completions"
        return _ANSWER


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
