"""Tables in memory that cannot grow for ever. They know no clock and no store."""

import heapq
from collections import OrderedDict
from typing import Generic, TypeVar

import msgspec

from extproc.admission import Fill

K = TypeVar("K")
V = TypeVar("V")


class Bounded(Generic[K, V]):
    """A table that forgets what was written longest ago."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self.items: OrderedDict[K, V] = OrderedDict()

    def put(self, key: K, value: V) -> None:
        self.items[key] = value
        self.items.move_to_end(key)
        if len(self.items) > self._max_entries:
            self.items.popitem(last=False)


class Entry(msgspec.Struct, frozen=True):
    body: bytes
    stored_ms: int
    expires_ms: int


class Cache:
    """One tenant's entries; the one that would expire first makes room."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._entries: dict[str, Entry] = {}
        self._by_expiry: list[tuple[int, str]] = []  # a heap; lines of replaced entries are skipped
        self.size_bytes = 0

    def find(self, fingerprint: str, now_ms: int) -> Entry | None:
        entry = self._entries.get(fingerprint)
        return entry if entry is not None and now_ms < entry.expires_ms else None

    def put(self, fill: Fill, now_ms: int) -> None:
        while self._by_expiry and self._by_expiry[0][0] <= now_ms:
            self._drop_first()
        if len(fill.entry) > fill.max_tenant_bytes or fill.ttl_ms <= 0:
            return
        self._remove(fill.fingerprint)
        while self._by_expiry and self._is_full(len(fill.entry), fill.max_tenant_bytes):
            self._drop_first()
        entry = Entry(fill.entry, now_ms, now_ms + fill.ttl_ms)
        self._entries[fill.fingerprint] = entry
        self.size_bytes += len(fill.entry)
        heapq.heappush(self._by_expiry, (entry.expires_ms, fill.fingerprint))

    def _is_full(self, more_bytes: int, max_bytes: int) -> bool:
        # the heap's own length counts too, or replacing one entry for ever would grow it
        return self.size_bytes + more_bytes > max_bytes or len(self._by_expiry) >= self._max_entries

    def _drop_first(self) -> None:
        expires_ms, fingerprint = heapq.heappop(self._by_expiry)
        entry = self._entries.get(fingerprint)
        if entry is not None and entry.expires_ms == expires_ms:
            self._remove(fingerprint)

    def _remove(self, fingerprint: str) -> None:
        entry = self._entries.pop(fingerprint, None)
        if entry is not None:
            self.size_bytes -= len(entry.body)
