"""Cache: how often an answer was there already, what that saves, and whether the store holds it."""

from typing import Any

from observability.dashboards.panels import HALF, THIRD, Limit, Query, figure, plot
from observability.dashboards.panels import board as make

_OURS = '{model=~"$model"}'


def board() -> Any:
    return make(
        "cache",
        "llm-mesh / Cache",
        "Answers that were there already, prefixes that vLLM had, and the store under it.",
        ("Response cache", _responses()),
        ("Prefix cache of the backends", _prefixes()),
        ("The store", _store()),
    )


def _responses() -> list[Any]:
    hits = f"rate(llm_cache_hits_total{_OURS}[$__rate_interval])"
    result = f"sum by (result) (rate(llm_cache_lookups_total{_OURS}[$__rate_interval]))"
    paid = f"sum by (model) (rate(llm_cost_micro_dollars_total{_OURS}[1h]))"
    asked = 'sum by (model) (rate(llm_cache_lookups_total{model=~"$model", result!="hit"}[1h]))'
    return [
        figure("Hits, last 5 min", "percentunit", "llm_cache_hits:ratio_rate5m", width=THIRD),
        figure("Hits, last 30 min", "percentunit", "llm_cache_hits:ratio_rate30m", width=THIRD),
        figure(
            "Saved, per hour",
            "currencyUSD",
            f"sum(sum by (model) (rate(llm_cache_hits_total{_OURS}[1h])) * {paid} / ({asked} > 0)) * 0.0036",
            about="Hits times what an answered request of the model costs by the price list.",
            width=THIRD,
        ),
        plot("Hits by model", "percentunit", Query(f"model:llm_cache_hits:ratio_rate5m{_OURS}", "{{model}}")),
        plot("Look-ups by result", "reqps", Query(result, "{{result}}"), stacked=True),
        plot("Answered from the cache", "reqps", Query(f"sum by (model) ({hits})", "{{model}}"), stacked=True),
        plot(
            "Answers stored",
            "reqps",
            Query(f"sum by (model) (rate(llm_cache_fills_total{_OURS}[$__rate_interval]))", "{{model}}"),
        ),
    ]


def _prefixes() -> list[Any]:
    cached = f"sum by (model) (rate(llm_prompt_tokens_cached_total{_OURS}[$__rate_interval]))"
    return [
        plot(
            "Prompt tokens found in vLLM's prefix cache",
            "percentunit",
            Query(f"model:vllm_prefix_cache_hits:ratio_rate5m{_OURS}", "{{model}}"),
        ),
        plot("Prompt tokens/s that were cached", "short", Query(cached, "{{model}}"), about="As usage tells them."),
    ]


def _store() -> list[Any]:
    waits = 'sum by (le) (rate(llm_phase_duration_seconds_bucket{phase="store"}[$__rate_interval]))'
    return [
        plot(
            "Waiting for the store, of a decision",
            "s",
            Query(f"histogram_quantile(0.5, {waits})", "p50"),
            Query(f"histogram_quantile(0.99, {waits})", "p99"),
            width=THIRD,
        ),
        plot(
            "Memory in use",
            "percentunit",
            Query("redis_memory_used_bytes / redis_memory_max_bytes", "{{instance}}"),
            limit=Limit(0.9),
            width=THIRD,
        ),
        plot(
            "Commands and clients",
            "short",
            Query("rate(redis_commands_processed_total[$__rate_interval])", "commands/s"),
            Query("redis_connected_clients", "clients"),
            width=THIRD,
        ),
        plot(
            "Cores used",
            "percentunit",
            Query(
                "rate(redis_cpu_user_seconds_total[$__rate_interval])"
                " + rate(redis_cpu_sys_seconds_total[$__rate_interval])",
                "{{instance}}",
            ),
            limit=Limit(0.9),
            about="One thread answers every request: near 100 % it is full.",
            width=HALF,
        ),
    ]
