"""The connection that receipts come over, as Envoy sees it."""

import httpx
import pytest
from stack_rig import NO_TLS, Caller, Platform, StartPlatform, eventually

pytestmark = pytest.mark.local
_QUIET_ATTEMPTS = 14  # of the health check, two a second


def _stat(platform: Platform, name: str) -> int:
    with httpx.Client(verify=NO_TLS) as client:
        text = client.get(f"http://127.0.0.1:{platform.stack.envoy_port}/stats?filter=llm-receipts").text
    return next(
        int(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(f"cluster.llm-receipts.{name}:")
    )


def test_a_quiet_receipts_connection_stays_open(start_platform: StartPlatform) -> None:
    """Envoy pings it every second. A worker that took this for abuse would close it, with what is under way."""
    with start_platform(workers=1) as platform, Caller(platform) as caller:
        caller.chat(max_tokens=1)
        caller.settled(1)
        before = _stat(platform, "health_check.attempt")
        eventually(lambda: _stat(platform, "health_check.attempt") > before + _QUIET_ATTEMPTS)
        assert _stat(platform, "upstream_cx_close_notify") == 0
        assert _stat(platform, "upstream_rq_total") == 1
