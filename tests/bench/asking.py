"""The bytes of a chat completion's request, cut where a number goes."""

import json

from backend import SERVED

PATH = "/v1/chat/completions"


def chat(key: str, words: int = 60, host: str = "bench", path: str = PATH, **fields: object) -> dict[str, bytes]:
    """Head and tail; the number of 16 digits between them begins the prompt. A model of "" is left to the gateway."""
    prompt = "@" + "The quick brown fox jumps over the lazy dog. " * (words // 9)
    ask = {"model": SERVED, "messages": [{"role": "user", "content": prompt}], **fields}
    body = json.dumps({name: value for name, value in ask.items() if value != ""}).encode()
    before, after = body.split(b"@")
    head = (
        b"POST %b HTTP/1.1\r\nhost: %b\r\nauthorization: Bearer %b\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
        % (path.encode(), host.encode(), key.encode(), len(body) + 15, before)
    )
    return {"head": head, "tail": after}
