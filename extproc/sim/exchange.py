"""One request that the engine works on: what it reports as due becomes events or a body on the connection."""

import msgspec

from extproc.sim.answers import Writer
from extproc.sim.engine import Job
from extproc.sim.http import Connection, Request
from extproc.sim.outlet import FaultyOutlet, Outlet

STREAM_ERROR = b"data: %b\n\n" % msgspec.json.encode(
    {
        "error": {
            "message": "EngineCore encountered an issue.",
            "type": "InternalServerError",
            "param": None,
            "code": 500,
        }
    }
)


class Exchange:
    """One request that the engine works on."""

    __slots__ = ("_outlet", "connection", "finished", "job", "request", "writer")

    def __init__(self, connection: Connection, request: Request, job: Job, writer: Writer) -> None:
        self.connection = connection
        self.request = request
        self.job = job
        self.finished = False
        self.writer = writer
        self._outlet: Outlet | None = None

    def begin(self) -> None:
        """Send what a stream sends before any token exists."""
        if not self.job.stream:
            return
        asked = self.request.faults
        faulty = asked.shapes_stream
        self._outlet = FaultyOutlet(self.connection, asked, STREAM_ERROR) if faulty else Outlet(self.connection)
        greeting = self.writer.greeting()
        if greeting and not self._outlet.send(greeting):
            self.finished = True

    def deliver(self) -> bool:
        """Write what is due; False if the rest is not wanted any more."""
        job, connection = self.job, self.connection
        if self._outlet is None:
            self.finished = True
            body = self.writer.plain()
            if self.request.faults.cut_after >= 0:
                connection.respond_half(body)
            else:
                connection.respond(200, body)
            return True
        events = [] if job.emitted else self.writer.opening()
        for at in range(job.emitted, job.due):
            for choice in range(job.width):
                if at < job.lengths[choice] and (event := self.writer.token(choice, at)):
                    events.append(event)
        job.emitted = job.due
        last = job.ended
        if last:
            self.finished = True
            events += self.writer.closing()
        if self._outlet.send(events, last=last):
            return True
        self.finished = True
        return False
