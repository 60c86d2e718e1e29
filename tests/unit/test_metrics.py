"""The names of the metrics."""

from prometheus_client import Counter, Gauge, Histogram

from extproc import metrics


def test_the_names_that_are_promised_exist() -> None:
    mine = [m for m in vars(metrics).values() if isinstance(m, Counter | Gauge | Histogram)]
    names = {sample.name for m in mine for family in m.collect() for sample in family.samples} | {
        family.name + ("_total" if family.type == "counter" else "") for m in mine for family in m.collect()
    }
    assert names >= {"llm_requests_total", "llm_request_duration_seconds", "llm_tokens_generated_total",
                     "llm_cache_hits_total"}  # fmt: skip
    assert all(name.startswith("llm_") for name in names)


def test_the_supervisors_metrics_have_labels_so_that_workers_show_none_of_them() -> None:
    assert metrics.WORKERS._labelnames
    assert metrics.WORKER_RESTARTS._labelnames
