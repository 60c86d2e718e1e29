"""The report: one HTML file without scripts, light or dark as the reader's system is; its look is page.css."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from costs import Cost, columns, rows
from places import Found
from plots import Line, linear, logarithmic, nines, plot, seconds
from promises import Verdict
from quantiles import Spread
from sums import Summary
from terminal import ms, warnings

_STYLE = Path(__file__).with_name("page.css").read_text()
_ERROR_COLOURS = (4, 1, 3, 6, 7)


def page(head: Mapping[str, Any], runs: Mapping[str, Found], verdicts: Sequence[Verdict]) -> str:
    name, last = list(runs.items())[-1]
    body = [
        f"<h1>{escape(head['scenario'])}: {_outcome(verdicts)}</h1>",
        f"<p>{escape(head['about'])}</p>",
        f'<p class="soft">{escape(_circumstances(head))}</p>',
        *(f'<p class="warn">{escape(words)}</p>' for run, found in runs.items() for words in warnings(run, found)),
        "<h2>Promises</h2>",
        _promises(verdicts),
        "<h2>Latency, ms</h2>",
        _latencies(runs),
        f"<h2>Over time, {escape(name)}</h2>",
        '<div class="plots">',
        *_over_time(last, runs),
        "</div><h2>Distribution</h2>",
        '<div class="plots">',
        _distribution("Time to first token", {n: f.result.summary.ttft_curve for n, f in runs.items()}),
        _distribution("Whole answers", {n: f.result.summary.whole_curve for n, f in runs.items()}),
        "</div>",
        *(_cost(run, found.cost) for run, found in runs.items() if found.cost is not None),
        "<h2>Versions and settings</h2>",
        _pairs({**head["versions"], **head["settings"]}),
    ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Load: {escape(head['scenario'])}</title><style>{_STYLE}</style><body>{''.join(body)}</body></html>\n"
    )


def _outcome(verdicts: Sequence[Verdict]) -> str:
    broken = sum(not v.met for v in verdicts)
    if not broken:
        return f'<span class="good">all {len(verdicts)} promises kept</span>'
    kind = "warn" if all(v.met or v.speed for v in verdicts) else "bad"
    return f'<span class="{kind}">{broken} of {len(verdicts)} missed</span>'


def _circumstances(head: Mapping[str, Any]) -> str:
    versions = head["versions"]
    where = "the local stack, a simulated backend" if head["local"] else "a deployed gateway"
    return f"{versions['date']}; {where}; load from {versions['cores']} cores, {versions['cpu']}"


def _promises(verdicts: Iterable[Verdict]) -> str:
    rows = []
    for v in verdicts:
        word, kind = ("kept", "good") if v.met else ("missed", "warn") if v.speed else ("broken", "bad")
        cells = "".join(f"<td>{escape(text)}</td>" for text in (v.name, v.wanted, v.found))
        rows.append(f'<tr>{cells}<td class="{kind}"><b>{word}</b></td></tr>')
    head = "<tr><th>promise</th><th>wanted</th><th>found</th><th></th></tr>".replace(
        "<th>", '<th style="text-align:left">'
    )
    return f'<div class="scroll"><table class="promises">{head}{"".join(rows)}</table></div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = "".join(f"<th>{escape(text)}</th>" for text in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{cells}</tr>{lines}</table></div>'


def _latencies(runs: Mapping[str, Found]) -> str:
    lines: list[list[str]] = []
    for name, found in runs.items():
        told = found.result.summary
        lines.append([f"{name}: time to first token", *_cells(told.all.ttft)])
        lines.append([f"{name}: gap between tokens", *_cells(told.gaps)])
        lines.append([f"{name}: whole answer", *_cells(told.all.whole)])
        if len(told.by_traffic) > 1:
            lines += [
                [f"{name}: {of}, {what}", *_cells(spread)]
                for of, each in told.by_traffic.items()
                for what, spread in (("first token", each.ttft), ("whole", each.whole))
            ]
        lines.append([f"{name}: sent late by the generator", *_cells(told.late)])
    return table(["", "count", "mean", "p50", "p95", "p99", "p99.9", "most"], (row for row in lines if len(row) > 2))


def _cells(spread: Spread | None) -> list[str]:
    if spread is None:
        return ["–"]
    of = (spread.mean, spread.p50, spread.p95, spread.p99, spread.p999, spread.max)
    return [f"{spread.count:,}", *(ms(value) for value in of)]


def _over_time(found: Found, runs: Mapping[str, Found]) -> list[str]:
    told = found.result.summary
    across = seconds(told.seconds)
    each = told.bin_seconds
    first, whole = ([*_pair(told, what, at), *_others(runs, found, what)] for what, at in (("ttft", 0), ("whole", 2)))
    plots = [
        plot("Arrivals and answers", "a second", [
            Line("due", [(p.at, p.due / each) for p in told.points], 5, area=True),
            Line("answered", [(p.at, p.answered / each) for p in told.points], 0),
            Line("refused", [(p.at, p.refused / each or None) for p in told.points], 1),
        ], across),
        plot("Errors", "a second, by kind", _errors(told), across),
        plot("Time to first token", "ms, by due time", first, across),
        plot("Whole answers", "ms, by due time", whole, across),
    ]  # fmt: skip
    return plots + (_parts(found.cost) if found.cost is not None else [])


def _pair(told: Summary, what: str, colour: int) -> list[Line]:
    return [
        Line(share, [(p.at, getattr(p, f"{what}_{share}")) for p in told.points], colour + at)
        for at, share in enumerate(("p50", "p95"))
    ]


def _others(runs: Mapping[str, Found], found: Found, what: str) -> list[Line]:
    return [
        Line(f"p95, {name}", [(p.at, getattr(p, f"{what}_p95")) for p in run.result.summary.points], 5, dashed=True)
        for name, run in runs.items()
        if run is not found
    ]


def _errors(told: Summary) -> list[Line]:
    none = [Line("none", [(p.at, 0.0) for p in told.points], 2)]
    return [
        Line(kind, [(p.at, p.errors.get(kind, 0) / told.bin_seconds) for p in told.points], _ERROR_COLOURS[at % 5])
        for at, kind in enumerate(told.errors)
    ] or none


def _parts(cost: Cost) -> list[str]:
    """Open streams, cores and memory, as they were looked at once a second."""
    samples = cost.samples
    across = seconds(samples[-1].progress.at)
    cores = {part: _rates([(s.progress.at, s.cpu_seconds[part]) for s in samples]) for part in samples[0].cpu_seconds}
    used = [(part, points) for part, points in cores.items() if any((y or 0) > 0.005 for _, y in points)]
    return [
        plot("Open", "at a time", [
            Line("asked, not answered", [(s.progress.at, s.progress.asking) for s in samples], 5),
            Line("streaming", [(s.progress.at, s.progress.streaming) for s in samples], 0),
            Line("connections", [(s.progress.at, s.progress.connections) for s in samples], 1, dashed=True),
        ], across),
        plot("CPU", "cores", [Line(part, points, at % 8) for at, (part, points) in enumerate(used)], across),
        plot("Resident memory", "MB", [
            Line(part, [(s.progress.at, s.megabytes[part]) for s in samples], at)
            for at, part in enumerate(samples[0].megabytes)
        ], across),
    ]  # fmt: skip


def _rates(points: Sequence[tuple[float, float]]) -> list[tuple[float, float | None]]:
    return [(x1, (y1 - y0) / (x1 - x0) if x1 > x0 + 0.5 else None) for (x0, y0), (x1, y1) in pairwise(points)]


def _distribution(title: str, curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    known = [(name, curve) for name, curve in curves.items() if curve]
    if not known:
        return ""
    values = [y for _, curve in known for _, y in curve]
    lines = [Line(name, curve, (5, 0, 1, 2)[at % 4]) for at, (name, curve) in enumerate(known)]
    if len(lines) == 1:
        lines = [Line(known[0][0], known[0][1], 0)]
    across = nines(max(x for _, curve in known for x, _ in curve))
    most, least = max(values), min(values)
    up = logarithmic(least, most) if most > 20 * max(least, 1e-3) else linear(most)
    return plot(title, "ms that this share of requests did not exceed", lines, across, up)


def _cost(name: str, cost: Cost) -> str:
    return f"<h2>What it cost, {escape(name)}</h2>" + table(["", *(title for title, _, _ in columns(cost))], rows(cost))


def _pairs(values: Mapping[str, Any]) -> str:
    pairs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(_said(value))}</dd>" for name, value in values.items())
    return f"<dl>{pairs}</dl>"


def _said(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "–" if value in ("", 0, 0.0) and value is not False else str(value)
