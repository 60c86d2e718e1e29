"""What is watched, when somebody is woken, and what is drawn: Python tables, and the files that are made from them.

`python -m observability` writes rules/ (PrometheusRule objects) and grafana/ (dashboards); a test holds the files to
the tables. Everything here is pure: names of metrics come from the processor, from vLLM's own list and from exporters/.
"""
