"""What a test asks the simulator to do wrong, by request headers `x-sim-*`.

Values only; http.py and service.py act on them. A header that cannot be read is ignored, as an unknown one is.
"""

import base64
import binascii
import contextlib

import msgspec

PREFIX = b"x-sim-"


class Faults(msgspec.Struct):
    status: int = 0  # x-sim-status: answer this status
    html: bool = False  # x-sim-status: "502 html": with a proxy's page instead of JSON
    delay_ms: float = 0.0  # x-sim-delay-ms: before the first byte
    hang: bool = False  # x-sim-hang: never answer
    cut_after: int = -1  # x-sim-cut-after: reset the connection after so many chunks, or inside a plain body
    split: int = 0  # x-sim-split: write the stream in pieces of so many bytes
    join: int = 0  # x-sim-join: so many events in one HTTP chunk
    stall_after: int = -1  # x-sim-stall-after: say nothing more after so many chunks
    error_after: int = -1  # x-sim-error-after: an error event after so many chunks, then [DONE]
    tokens: int = 0  # x-sim-tokens: completion length
    text: str | None = None  # x-sim-text: the answer, base64 of UTF-8
    tool: str | None = None  # x-sim-tool: call this one of the tools that the model may call or not

    @property
    def shapes_stream(self) -> bool:
        return bool(self.split or self.join) or max(self.cut_after, self.stall_after, self.error_after) >= 0


NONE = Faults()


def parse(headers: list[tuple[bytes, bytes]]) -> Faults:
    """Read the faults off lower-case request headers."""
    faults = Faults()
    for name, value in headers:
        if name.startswith(PREFIX):
            with contextlib.suppress(ValueError, binascii.Error):
                _apply(faults, name[len(PREFIX) :].decode().replace("-", "_"), value.decode().strip())
    return faults


def _apply(faults: Faults, name: str, value: str) -> None:
    if name == "status":
        status, _, variant = value.partition(" ")
        faults.status, faults.html = int(status), variant.strip() == "html"
    elif name == "hang":
        faults.hang = value not in ("0", "false", "")
    elif name == "text":
        faults.text = base64.b64decode(value).decode()
    elif name == "tool":
        faults.tool = value
    elif name == "delay_ms":
        faults.delay_ms = float(value)
    elif name in ("cut_after", "split", "join", "stall_after", "error_after", "tokens"):
        setattr(faults, name, int(value))
