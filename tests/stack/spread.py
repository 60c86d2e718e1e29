"""A word that is sent through every path, to be looked for afterwards where it must not be."""

import contextlib

import httpx
from stack_rig import Caller, eventually, said


def spread(caller: Caller, word: str) -> None:
    """Answered, streamed, cached, refused by us, by Envoy and by the backend, broken, too long, cut short; in the
    prompt, in fields and headers beside it, and in the address."""
    echo = said(f"I heard {word}")
    caller.chat(word, headers=echo)
    caller.chat(word, stream=True, headers=echo)
    for _ in range(2):
        caller.chat(word, temperature=0, headers=echo)
        eventually(lambda: caller.reserved() == 0)
    caller.chat(word, user=word, metadata={word: word}, headers={"user-agent": word, "x-request-id": word})
    caller.chat(word, tools=[{"type": "function", "function": {"name": word, "description": word}}])
    caller.chat(word, temperature=-1)
    caller.chat(word, model="no-such-model")
    caller.chat(model=word)
    caller.chat(word, headers={"traceparent": word, "authorization": f"Bearer {word}"})
    caller.chat(word + " word" * 100_000)
    caller.chat(word + " word" * 12_000)
    caller.chat(word, headers={"x-sim-status": "500"})
    caller.http.post("/chat/completions", content=word, headers={"content-type": "application/json"})
    caller.http.post("/chat/completions", content=word, headers={"content-type": word})
    caller.http.post("/chat/completions", content=word * 300_000, headers={"content-type": "application/json"})
    caller.http.post(f"/{word}?{word}", json={word: word})
    caller.http.get(f"/models/{word}?{word}")
    caller.http.post("/completions", json={"model": "llama2", "prompt": word, "echo": True})
    caller.http.post("/embeddings", json={"input": word})
    caller.http.post("/responses", json={"model": "llama2", "input": word, "instructions": word, "stream": True})
    for fault in ("x-sim-cut-after", "x-sim-error-after"):
        with contextlib.suppress(httpx.RemoteProtocolError):
            caller.chat(word, stream=True, headers={fault: "2", **echo})
    eventually(lambda: caller.reserved() == 0)
    with Caller(caller.platform) as last:
        last.chat(max_tokens=1)
        last.settled(1)
