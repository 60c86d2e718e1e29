"""An event stream on a connection: one that keeps the rules, and one that breaks them as a test asks.

It owns which piece goes into which HTTP chunk and where a stream is cut; it must not know what an event says.
"""

from extproc.sim.faults import Faults
from extproc.sim.http import Connection


class Outlet:
    """An event stream that keeps the rules."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        connection.begin()

    def send(self, events: list[bytes], *, last: bool = False) -> bool:
        """Send; False if nothing more may follow."""
        if last or len(events) != 1:
            self._connection.send_all(events, last=last)
        else:
            self._connection.send(events[0])
        return True


class FaultyOutlet(Outlet):
    """An event stream that breaks them as asked."""

    def __init__(self, connection: Connection, asked: Faults, error: bytes) -> None:
        super().__init__(connection)
        self._asked = asked
        self._error = error
        self._count = 0
        self._held = b""

    def send(self, events: list[bytes], *, last: bool = False) -> bool:
        for event in events:
            if self._breaks():
                return False
            self._count += 1
            self._held += event
            if self._count % (self._asked.join or 1) == 0:
                self._flush(all_of_it=not self._asked.split)
        if self._breaks():
            return False
        if last:
            self._flush(all_of_it=True)
            self._connection.trickle([], lambda: self._connection.send_all([], last=True))
        return True

    def _flush(self, *, all_of_it: bool) -> None:
        """Write what is held, in pieces if so asked; a piece that is not full waits for more."""
        size = self._asked.split or len(self._held) or 1
        end = len(self._held) if all_of_it else len(self._held) // size * size
        self._connection.trickle([self._held[at : min(at + size, end)] for at in range(0, end, size)])
        self._held = self._held[end:]

    def _breaks(self) -> bool:
        asked, connection = self._asked, self._connection
        if self._count not in (asked.cut_after, asked.stall_after, asked.error_after):
            return False
        self._flush(all_of_it=True)
        if self._count == asked.cut_after:
            connection.trickle([], connection.reset)
        elif self._count == asked.stall_after:
            connection.trickle([], connection.stall)
        else:
            end = [self._error, b"data: [DONE]\n\n"]
            connection.trickle([], lambda: connection.send_all(end, last=True))
        return True
