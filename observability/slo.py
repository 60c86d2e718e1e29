"""What is promised, as one table, and what is made from it: error ratios over eight windows and burn-rate alerts.

The way of the SRE workbook: an alert fires while the error budget burns at `factor` times the speed that uses it up in
30 days, over a long window (it matters) and over a short one (it still goes on). Too few events in the long window say
nothing: one failure at night would be a tenth of all.
"""

from collections.abc import Iterator

import msgspec

from observability.rule import Alert, Group, Recorded, Severity, seconds


class Slo(msgspec.Struct, frozen=True):
    """A promise: of `total` events at most 1 - `objective` are `bad`. `$w` stands for the window."""

    name: str
    alert: str
    promise: str  # in words
    objective: float
    bad: str
    total: str
    least_events: int = 100  # in the long window; below it nothing is said


class Window(msgspec.Struct, frozen=True):
    long: str
    short: str
    factor: float  # 14.4: 2 % of the month's budget in an hour; 6: 5 % in six; 3: 10 % in a day; 1: 10 % in three days
    wait: str
    severity: Severity


# Counted by Envoy, since a processor that is away counts nothing: all that clients got from the port of the API.
API = 'envoy_http_conn_manager_prefix=~"gateway|outbound_.*_8443"'

SLOS = (
    Slo(
        "availability",
        "LlmAvailabilityBudgetBurn",
        "99.9 % of the requests are not answered with 5xx",
        0.999,
        "sum(rate(envoy_http_downstream_rq_xx{" + API + ', envoy_response_code_class="5"}[$w]))',
        "sum(rate(envoy_http_downstream_rq_xx{" + API + "}[$w]))",
    ),
    Slo(
        "ttft",
        "LlmTimeToFirstTokenBudgetBurn",
        "95 % of the streamed answers begin within 300 ms",
        0.95,
        "sum(rate(llm_time_to_first_token_seconds_count[$w]))"
        ' - sum(rate(llm_time_to_first_token_seconds_bucket{le="0.3"}[$w]))',
        "sum(rate(llm_time_to_first_token_seconds_count[$w]))",
    ),
    Slo(
        "overhead",
        "LlmOverheadBudgetBurn",
        "the platform adds at most 10 ms to 99 % of the requests",
        0.99,
        'sum(rate(llm_overhead_seconds_count[$w])) - sum(rate(llm_overhead_seconds_bucket{le="0.01"}[$w]))',
        "sum(rate(llm_overhead_seconds_count[$w]))",
    ),
)
WINDOWS = (
    Window("1h", "5m", 14.4, "2m", "critical"),
    Window("6h", "30m", 6.0, "15m", "critical"),
    Window("1d", "2h", 3.0, "1h", "warning"),
    Window("3d", "6h", 1.0, "3h", "warning"),
)


def groups() -> Iterator[Group]:
    for slo in SLOS:
        yield Group(f"llm-slo-{slo.name}", [*_recorded(slo), *(_alert(slo, window) for window in WINDOWS)])


def _recorded(slo: Slo) -> Iterator[Recorded]:
    for w in sorted({w for window in WINDOWS for w in (window.long, window.short)}, key=seconds):
        bad, total = slo.bad.replace("$w", w), slo.total.replace("$w", w)
        yield Recorded(f"slo_{slo.name}:errors:ratio_rate{w}", f"({bad}) / ({total})")
        yield Recorded(f"slo_{slo.name}:events:rate{w}", total)
    yield Recorded(
        f"slo_{slo.name}:error_budget:remaining",
        f"1 - slo_{slo.name}:errors:ratio_rate3d / {_budget(slo)}",
    )


def _alert(slo: Slo, window: Window) -> Alert:
    burning = " and ".join(
        f"slo_{slo.name}:errors:ratio_rate{w} > {window.factor * _budget(slo):.6g}" for w in (window.long, window.short)
    )
    least = slo.least_events / seconds(window.long)
    return Alert(
        slo.alert,
        f"{burning} and slo_{slo.name}:events:rate{window.long} > {least:.6g}",
        window.wait,
        window.severity,
        f"The error budget burns {window.factor:g} times too fast over {window.long} and {window.short}:"
        " {{ $value | humanizePercentage }} fail. Promised: " + slo.promise + ".",
        {"slo": slo.name, "long": window.long, "short": window.short},
    )


def _budget(slo: Slo) -> float:
    return round(1 - slo.objective, 6)
