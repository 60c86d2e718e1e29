"""Who may see the console: the admin token, and the cookie that stands for it in a browser.

The token comes from the environment or from a file, which is read again when a second has passed: a rotated token
holds at once and ends every session, and a token that comes late switches the console on. The cookie is an end time
and its HMAC under the token; the token itself is in no cookie and no URL, and another replica with the same token takes
the cookie too. Signing out takes the cookie from the browser; nothing here remembers sessions. `now` is the epoch's
seconds, except where guesses are counted: those are by a clock that nobody sets.
"""

import hashlib
import hmac
from collections import OrderedDict
from pathlib import Path

SESSION_SECONDS = 12 * 3600
SHORTEST_TOKEN = 16  # characters
_REREAD_SECONDS = 1.0
_FAILURES = 10  # per address, until it has to wait
_FAILURE_SECONDS = 60.0
_MAX_ADDRESSES = 1000


class Access:
    def __init__(self, token: str, file: str = "") -> None:
        self._token = token.strip()
        self._file = file
        self._read_at = float("-inf")
        self._failures: OrderedDict[str, list[float]] = OrderedDict()
        self.why_off = ""  # for the log

    def token(self, now: float) -> str:
        """ "" = the console is off, `why_off` says why."""
        if self._file and abs(now - self._read_at) > _REREAD_SECONDS:  # clocks are set, too
            self._read_at = now
            self._token = _read(self._file)
        if len(self._token) >= SHORTEST_TOKEN:
            self.why_off = ""
            return self._token
        where = self._file or "LLM_MESH_ADMIN_TOKEN"
        if self._token:
            self.why_off = f"the admin token in {where} is shorter than {SHORTEST_TOKEN} characters"
        else:
            self.why_off = "no admin token: set LLM_MESH_ADMIN_TOKEN or --admin-token-file" + (
                f" ({where} is empty or not there)" if self._file else ""
            )
        return ""

    def is_token(self, shown: str, now: float) -> bool:
        token = self.token(now)
        return bool(token) and hmac.compare_digest(_digest(shown.strip()), _digest(token))

    def session(self, now: float) -> str:
        """A cookie's value."""
        ends = str(int(now + SESSION_SECONDS))
        return f"{ends}.{self._sign(ends, now)}"

    def is_session(self, cookie: str, now: float) -> bool:
        ends, _, signature = cookie.partition(".")
        if not self.token(now) or not hmac.compare_digest(_digest(signature), _digest(self._sign(ends, now))):
            return False
        return int(ends) > now  # signed by us: a number

    def _sign(self, ends: str, now: float) -> str:
        key = _digest("llm-mesh console session " + self.token(now))
        return hmac.new(key, ends.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()

    # --- guesses ------------------------------------------------------------------------------------------------------

    def wait_seconds(self, address: str, now: float) -> int:
        """0 = this address may try; else when."""
        recent = [at for at in self._failures.get(address, []) if now - at < _FAILURE_SECONDS]
        return int(recent[0] + _FAILURE_SECONDS - now) + 1 if len(recent) >= _FAILURES else 0

    def failed(self, address: str, now: float) -> None:
        recent = [at for at in self._failures.pop(address, []) if now - at < _FAILURE_SECONDS]
        self._failures[address] = [*recent, now][-_FAILURES:]
        if len(self._failures) > _MAX_ADDRESSES:
            self._failures.popitem(last=False)


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
