"""A real Loki and a real Jaeger, asked as Grafana asks them."""

import time
from typing import Any, NamedTuple, Self

import httpx
from stack_rig import NO_TLS

Json = dict[str, Any]


class Line(NamedTuple):
    labels: Json  # with the structured metadata, and what the query took out of the text
    at_ns: int
    text: str


class _Store:
    path = ""

    def __init__(self, address: str) -> None:
        self._http = httpx.Client(base_url=f"http://{address}{self.path}", verify=NO_TLS, timeout=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()


class Loki(_Store):
    path = "/loki/api/v1"

    def values(self, query: str) -> list[Json]:
        """The samples of an instant query."""
        return self._asked("/query", query)

    def lines(self, query: str) -> list[Line]:
        """Of the last hour, oldest first."""
        now = time.time()
        streams = self._asked("/query_range", query, start=f"{now - 3600:.0f}", end=f"{now + 60:.0f}", limit="5000")
        lines = [Line(stream["stream"], int(at), text) for stream in streams for at, text in stream["values"]]
        return sorted(lines, key=lambda line: line.at_ns)

    def labels(self) -> set[str]:
        return set(self._http.get("/labels").json()["data"])

    def _asked(self, path: str, query: str, **parameters: str) -> list[Json]:
        answer = self._http.get(path, params={"query": query.replace("$__range", "10m"), **parameters})
        assert answer.status_code == 200, f"{query}: {answer.text}"
        result: list[Json] = answer.json()["data"]["result"]
        return result


class Jaeger(_Store):
    path = "/api"

    def spans(self, trace: str) -> list[Json]:
        """Of one trace; none where it is not known."""
        found = self._http.get(f"/traces/{trace}").json()["data"] or []
        return [span for each in found for span in each["spans"]]

    def traces(self) -> list[Json]:
        found: list[Json] = self._http.get("/traces", params={"service": "llm-mesh", "limit": 1500}).json()["data"]
        return found
