"""The few kinds of panels that our dashboards are made of, over Grafana's own SDK.

Every query names its data source by a variable, so that a dashboard works wherever it is put. Latency queries carry
exemplars: a dot in the plot leads to the trace of one request.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from grafana_foundation_sdk.builders import common, dashboard, heatmap, logs, loki, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

PROMETHEUS = models.DataSourceRef(type_val="prometheus", uid="${prometheus}")
LOKI = models.DataSourceRef(type_val="loki", uid="${loki}")
WIDE, HALF, THIRD, QUARTER, SIXTH = 24, 12, 8, 6, 4
_PLOT_HEIGHT, _FIGURE_HEIGHT = 8, 4
Panel = Builder[models.Panel]


class Query(msgspec.Struct, frozen=True):
    """An expression and what its lines are called. `$model` and the like are the dashboard's variables."""

    expr: str
    legend: str = ""
    exemplars: bool = False


class Limit(msgspec.Struct, frozen=True):
    """A line across a plot: what is promised, or where the autoscaler acts."""

    value: float
    colour: str = "red"


def plot(
    title: str,
    unit: str,
    *queries: Query,
    about: str = "",
    width: int = HALF,
    stacked: bool = False,
    limit: Limit | None = None,
) -> Panel:
    """Lines over time."""
    panel = timeseries.Panel().title(title).description(about).datasource(PROMETHEUS).unit(unit)
    panel = panel.span(width).height(_PLOT_HEIGHT).min(0).fill_opacity(10).line_width(1)
    panel = panel.show_points(kinds.VisibilityMode.NEVER)
    legend = common.VizLegendOptions().show_legend(True).placement(kinds.LegendPlacement.BOTTOM)
    panel = panel.legend(legend.display_mode(kinds.LegendDisplayMode.LIST))
    panel = panel.tooltip(common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI))
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL)).fill_opacity(30)
    if limit is not None:
        panel = panel.thresholds(_thresholds([(None, "transparent"), (limit.value, limit.colour)]))
        panel = panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(kinds.GraphThresholdsStyleMode.LINE))
    for query in _asked(queries):
        panel = panel.with_target(query)
    return panel


def figure(
    title: str, unit: str, expr: str, *steps: tuple[float | None, str], about: str = "", width: int = QUARTER
) -> Panel:
    """One number, coloured by steps from below: (None, "red"), (0.25, "green") …"""
    panel = stat.Panel().title(title).description(about).datasource(PROMETHEUS).unit(unit)
    panel = panel.span(width).height(_FIGURE_HEIGHT).graph_mode(kinds.BigValueGraphMode.AREA)
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    panel = panel.thresholds(_thresholds(list(steps) or [(None, "blue")]))
    return panel.with_target(_prometheus(Query(expr), "A"))


def spread(title: str, expr: str, about: str = "", width: int = HALF) -> Panel:
    """How a histogram's observations are distributed over time: `expr` gives the increase of its buckets by `le`."""
    panel = heatmap.Panel().title(title).description(about).datasource(PROMETHEUS)
    panel = panel.span(width).height(_PLOT_HEIGHT).calculate(False)
    return panel.with_target(_prometheus(Query(expr, "{{le}}", exemplars=True), "A").format(PromQueryFormat.HEATMAP))


def ranking(title: str, unit: str, expr: str, about: str = "", width: int = HALF, source: str = "prometheus") -> Panel:
    """A table of the largest values over the time that is looked at."""
    panel = table.Panel().title(title).description(about).span(width).height(_PLOT_HEIGHT).unit(unit)
    if source == "loki":
        return panel.datasource(LOKI).with_target(_loki(expr).instant(True))
    query = _prometheus(Query(expr), "A").instant().format(PromQueryFormat.TABLE)
    hidden = models.DataTransformerConfig(id_val="organize", options={"excludeByName": {"Time": True}})
    return panel.datasource(PROMETHEUS).with_target(query).with_transformation(hidden)


def lines(title: str, expr: str, about: str = "") -> Panel:
    """Lines of a log."""
    panel = logs.Panel().title(title).description(about).datasource(LOKI).span(WIDE).height(_PLOT_HEIGHT)
    return panel.with_target(_loki(expr))


def board(name: str, title: str, about: str, *rows: tuple[str, Sequence[Panel]], models_variable: bool = True) -> Any:
    """A dashboard as JSON: rows of panels, one after the other."""
    built = dashboard.Dashboard(title).uid(f"llm-{name}").description(about).tags(["llm-mesh"]).readonly()
    built = built.time("now-3h", "now").refresh("30s").timezone("browser").tooltip(models.DashboardCursorSync.CROSSHAIR)
    built = built.with_variable(dashboard.DatasourceVariable("prometheus").label("Prometheus").type("prometheus"))
    built = built.with_variable(dashboard.DatasourceVariable("loki").label("Loki").type("loki"))
    if models_variable:
        query = 'label_values(llm_requests_total{model!=""}, model)'
        variable = dashboard.QueryVariable("model").label("Model").datasource(PROMETHEUS).query(query)
        variable = variable.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).multi(True).include_all(True)
        built = built.with_variable(variable.all_value(".+").current(models.VariableOption(text="All", value="$__all")))
    link = dashboard.DashboardLink("llm-mesh").type(models.DashboardLinkType.DASHBOARDS).tags(["llm-mesh"])
    built = built.link(link.as_dropdown(True).keep_time(True).include_vars(True))
    for heading, panels in rows:
        built = built.with_row(dashboard.Row(heading))
        for panel in panels:
            built = built.with_panel(panel)
    return built.build()


def _asked(queries: Sequence[Query]) -> list[prometheus.Dataquery]:
    return [_prometheus(query, chr(ord("A") + n)) for n, query in enumerate(queries)]


def _prometheus(query: Query, ref: str) -> prometheus.Dataquery:
    asked = prometheus.Dataquery().datasource(PROMETHEUS).ref_id(ref).expr(query.expr).legend_format(query.legend)
    return asked.exemplar(True) if query.exemplars else asked


def _loki(expr: str) -> loki.Dataquery:
    return loki.Dataquery().datasource(LOKI).ref_id("A").expr(expr)


def _thresholds(steps: Sequence[tuple[float | None, str]]) -> dashboard.ThresholdsConfig:
    made = [models.Threshold(value=value, color=colour) for value, colour in steps]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(made)
