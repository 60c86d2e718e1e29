"""Cost and attribution: what is spent, by whom and for what, by the price list and by GPU hours.

Tenants, models and arms are labels of metrics. Users and keys are not, there may be millions: their tables come from
the request log.
"""

from typing import Any

from observability.dashboards.panels import HALF, QUARTER, THIRD, WIDE, Limit, Query, figure, lines, plot, ranking
from observability.dashboards.panels import board as make

_OURS = '{model=~"$model"}'
_REQUESTS = '{service_name="llm-mesh"} | json | kind="request"'
_COST = "llm_cost_micro_dollars_total"


def board() -> Any:
    return make(
        "cost",
        "llm-mesh / Cost and attribution",
        "What is spent, by whom and for what: by the price list, and by GPU hours.",
        ("Now", _now()),
        ("By the price list", _listed()),
        ("By GPU hours", _gpus()),
        ("By user and key, from the request log", _users()),
    )


def _now() -> list[Any]:
    return [
        figure("Charged, per hour", "currencyUSD", f"sum(rate({_COST}[5m])) * 3600 / 1000000"),
        figure(
            "Charged, at this rate a month",
            "currencyUSD",
            f"sum(rate({_COST}[1h])) * 30 * 86400 / 1000000",
            (None, "green"),
            (50_000.0, "red"),
        ),
        figure(
            "GPUs, per 1 M tokens",
            "currencyUSD",
            "gpu_dollars:per_million_tokens",
            (None, "green"),
            (5.0, "red"),
            about="On-demand prices of observability/prices.py, over prompt and answer tokens of an hour.",
        ),
        figure(
            "GPUs, a month",
            "currencyUSD",
            "sum(model:gpu_dollars:per_hour) * 30 * 24",
            (None, "green"),
            (50_000.0, "red"),
        ),
    ]


def _listed() -> list[Any]:
    rate = f"rate({_COST}{_OURS}[$__rate_interval])"
    arms = 'rate(llm_arm_cost_micro_dollars_total{model=~"$model"}[$__rate_interval])'
    return [
        plot(
            "Dollars/h by tenant",
            "currencyUSD",
            Query(f"topk(10, sum by (tenant) ({rate}) * 0.0036)", "{{tenant}}"),
            stacked=True,
        ),
        plot(
            "Dollars/h by model", "currencyUSD", Query(f"sum by (model) ({rate}) * 0.0036", "{{model}}"), stacked=True
        ),
        plot(
            "Dollars/h by arm",
            "currencyUSD",
            Query(f"sum by (model, arm) ({arms}) * 0.0036", "{{model}} {{arm}}"),
            stacked=True,
            width=THIRD,
        ),
        plot(
            "Dollars per 1 M tokens charged",
            "currencyUSD",
            Query(f"model:llm_price_dollars:per_million_tokens{_OURS}", "{{model}}"),
            width=THIRD,
        ),
        plot(
            "Tokens/s, charged",
            "short",
            Query(f"model:llm_prompt_tokens:rate5m{_OURS}", "{{model}} prompt"),
            Query(f"model:llm_tokens_generated:rate5m{_OURS}", "{{model}} answer"),
            stacked=True,
            width=THIRD,
        ),
        ranking(
            "Tenants: dollars",
            "currencyUSD",
            f"topk(20, sum by (tenant) (increase({_COST}{_OURS}[$__range])) / 1000000)",
        ),
        ranking(
            "Tenants: requests refused, by reason",
            "short",
            'topk(20, sum by (tenant, reason) (increase(llm_refused_total{tenant!=""}[$__range])))',
        ),
        plot(
            "Charged by estimate",
            "percentunit",
            Query(
                f"sum(rate(llm_estimated_total{_OURS}[5m])) / sum(model:llm_requests:rate5m{_OURS})", "of the requests"
            ),
            limit=Limit(0.05),
            about="Their answers were cut before the backend told the usage.",
            width=WIDE,
        ),
    ]


def _gpus() -> list[Any]:
    return [
        plot(
            "Dollars/h of GPUs",
            "currencyUSD",
            Query(f"model:gpu_dollars:per_hour{_OURS}", "{{model}}"),
            stacked=True,
            width=THIRD,
        ),
        plot(
            "Dollars per 1 M tokens",
            "currencyUSD",
            Query(f"model:gpu_dollars:per_million_tokens{_OURS}", "{{model}}"),
            limit=Limit(5),
            width=THIRD,
        ),
        plot(
            "Charged over spent",
            "percentunit",
            Query(
                f"model:llm_price_dollars:per_million_tokens{_OURS} / model:gpu_dollars:per_million_tokens{_OURS}",
                "{{model}}",
            ),
            about="Above 100 % the price list covers the GPUs.",
            width=THIRD,
        ),
    ]


def _users() -> list[Any]:
    def top(by: str, value: str) -> str:
        return f"topk(20, sum by ({by}) (sum_over_time({_REQUESTS} | unwrap {value} [$__range])))"

    return [
        ranking("Users: micro-dollars", "short", top("tenant, user", "cost_micros"), source="loki"),
        ranking("Keys: micro-dollars", "short", top("tenant, key_id", "cost_micros"), source="loki"),
        ranking(
            "Users: answer tokens", "short", top("tenant, user", "completion_tokens"), width=QUARTER * 2, source="loki"
        ),
        ranking(
            "Users by model and arm: micro-dollars",
            "short",
            top("user, model, arm", "cost_micros"),
            width=HALF,
            source="loki",
        ),
        lines("Requests", _REQUESTS + ' | status >= 400 or reason != ""', "Those that failed or were refused."),
    ]
