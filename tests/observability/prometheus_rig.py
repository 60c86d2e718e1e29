"""A real Prometheus beside a running platform, asked over its own API."""

from typing import Any, Self

import httpx
from stack_rig import NO_TLS, Platform, eventually

from extproc.local.observe import observe

Json = dict[str, Any]
_VARIABLES = {"$__rate_interval": "10s", "$__range": "10m", "$model": ".+"}


class Asked:
    """A Prometheus that runs, at its address."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=f"{url}/api/v1", verify=NO_TLS, timeout=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def ask(self, expr: str) -> list[Json]:
        """The samples of an instant query. Grafana's variables mean everything."""
        for name, value in _VARIABLES.items():
            expr = expr.replace(name, value)
        answer = self.http.get("/query", params={"query": expr}).json()
        assert answer["status"] == "success", f"{expr}: {answer}"
        result: list[Json] = answer["data"]["result"]
        return [sample for sample in result if sample["value"][1] != "NaN"]

    def firing(self) -> set[str]:
        return {alert["metric"]["alertname"] for alert in self.ask('ALERTS{alertstate="firing"}')}

    def await_alert(self, name: str, *, firing: bool, seconds: float = 60.0) -> None:
        eventually(lambda: (name in self.firing()) == firing, seconds)

    def summary(self, name: str) -> str:
        """What the first active alert of that name says."""
        alerts = self.http.get("/alerts").json()["data"]["alerts"]
        return next(str(a["annotations"]["summary"]) for a in alerts if a["labels"]["alertname"] == name)

    def await_targets(self, count: int) -> None:
        def up() -> bool:
            return len([s for s in self.ask("up") if s["value"][1] == "1"]) == count

        eventually(up)


class Prometheus(Asked):
    """Beside the local stack."""

    def __init__(self, platform: Platform, groups: list[Json] | None = None) -> None:
        super().__init__(platform.do(observe(platform.stack, groups=groups, interval="500ms")))


def panels(board: Json) -> list[Json]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries(panel: Json) -> list[str]:
    """The PromQL of a panel."""
    return [t["expr"] for t in panel["targets"] if t["datasource"]["type"] == "prometheus"]
