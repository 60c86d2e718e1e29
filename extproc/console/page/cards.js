// The six figures that matter, each with its plot. A card says what is now, and the plot how it came to that.

import { h, say } from "./dom.js";
import * as f from "./format.js";
import { Plot } from "./plot.js";

const TTFT_OBJECTIVE_SECONDS = 0.3; // as in observability/slo.py, whose alerts look at longer windows
const FAILED_OBJECTIVE = 0.001;

const lines = (...series) => (scope, sources) =>
  series.map(([field, name, color, style]) => ({ key: field, name, color, style, values: sources.of(scope, field) }));

/** Everything is drawn model by model, one model as a whole. */
const byModel = (field) => (scope, sources) =>
  (scope ? [scope] : sources.models(field)).map((name) => ({ key: name, name, color: sources.color(name), values: sources.of(name, field) }));

const CARDS = [
  {
    name: "Requests",
    value: (now) => f.rate(now.requests_per_second),
    note: (now, totals, since) => `${f.count(totals.requests)} since ${since}`,
    plot: { format: f.rate, stacked: true, least: 1, empty: "No request in the last 15 minutes." },
    series: byModel("requests_per_second"),
  },
  {
    name: "Time to first token, p95",
    value: (now) => f.time(now.ttft_p95_seconds),
    note: (now) => (now.ttft_streams ? `of ${f.count(now.ttft_streams)} streams · platform’s part ${f.time(now.overhead_p95_seconds)}` : "no streamed answer in the last minute"),
    alarm: (now) => (now.ttft_p95_seconds > TTFT_OBJECTIVE_SECONDS ? "over 300 ms" : ""),
    plot: { format: f.time, least: 0.1, reference: { value: TTFT_OBJECTIVE_SECONDS, name: "objective 300 ms" }, empty: "No streamed answer in the last 15 minutes." },
    series: lines(["ttft_p99_seconds", "p99", 2, "dashed"], ["ttft_p95_seconds", "p95", 1], ["ttft_p50_seconds", "p50", 3, "faint"]),
  },
  {
    name: "Cache hit rate",
    value: (now) => f.percent(now.hit_ratio),
    note: (now, totals) => (totals.lookups ? `${f.count(totals.hits)} hits of ${f.count(totals.lookups)} look-ups` : "nothing has looked into the cache yet"),
    plot: { format: f.percent, top: 1, empty: "No cacheable request in the last 15 minutes." },
    series: lines(["hit_ratio", "hit rate", 3]),
  },
  {
    name: "Tokens",
    value: (now) => f.rate(now.completion_tokens_per_second),
    note: (now) => `written; ${f.rate(now.prompt_tokens_per_second)} read`,
    plot: { format: f.rate, least: 10, empty: "No tokens in the last 15 minutes." },
    series: lines(["prompt_tokens_per_second", "read (prompts)", 4, "dashed"], ["completion_tokens_per_second", "written (answers)", 1]),
  },
  {
    name: "Cost by price list",
    value: (now) => f.moneyPerHour(now.usd_per_hour),
    note: (now, totals, since) => `${f.money(totals.usd)} since ${since}`,
    plot: { format: f.moneyPerHour, stacked: true, least: 0.01, empty: "Nothing was charged in the last 15 minutes." },
    series: byModel("usd_per_hour"),
  },
  {
    name: "Failed answers",
    value: (now) => f.percent(now.failed_ratio),
    alarm: (now) => (now.failed_ratio > FAILED_OBJECTIVE ? "over 0.1 %" : ""),
    note: (now, totals, since, overloaded) => `5xx; refused ${f.rate(now.refused_per_second)}, rejected ${f.rate(now.rejected_per_second)}${overloaded ? `; ${f.count(overloaded)} turned away from full models since ${since}` : ""}`,
    plot: { format: f.rate, least: 0.2, empty: "No request in the last 15 minutes." },
    series: lines(
      ["failed_per_second", "failed (5xx)", 6],
      ["refused_per_second", "refused (429)", 2, "dashed"],
      ["rejected_per_second", "rejected (other 4xx)", 4],
      ["left_per_second", "client left", 7, "faint"],
    ),
  },
];

class Card {
  constructor(kind) {
    this.kind = kind;
    this.value = h("span", { class: "value" }, f.NOTHING);
    this.alarm = h("span", { class: "alarm" });
    this.note = h("span", { class: "muted" });
    this.plot = new Plot(kind.name, kind.plot);
    this.element = h("article", { class: "card" }, h("h3", {}, kind.name), h("p", { class: "figure" }, this.value, this.alarm, this.note), this.plot.element);
  }

  update(times, scope, { now, totals, overloaded }, since, sources, spanMs) {
    say(this.value, this.kind.value(now));
    say(this.alarm, this.kind.alarm?.(now) ?? "");
    this.alarm.hidden = !this.alarm.textContent;
    say(this.note, this.kind.note(now, totals, since, overloaded));
    this.plot.update(times, this.kind.series(scope, sources), spanMs);
  }
}

export class Cards {
  constructor(parent) {
    this.cards = CARDS.map((kind) => new Card(kind));
    parent.append(...this.cards.map((card) => card.element));
    this.colors = new Map();
  }

  /** `scope`: a model's name, or "" for all. */
  update(live, history, scope) {
    const models = live.models.filter((model) => model.name);
    const unnamed = live.models.filter((model) => !model.name && model.totals.requests);
    const nows = new Map([["", live.total], ...unnamed.map((none) => [f.NO_MODEL, none.now]), ...models.map((model) => [model.name, model.now])]);
    const sources = {
      models: (field) => [
        ...models.filter((model) => model.totals.requests || model.state).map((model) => model.name),
        ...(field === "requests_per_second" ? unnamed.map(() => f.NO_MODEL) : []), // nothing else is counted of them
      ],
      color: (name) => this.#color(name),
      of: (name, field) => history.values(name, field, nows.get(name)),
    };
    const model = models.find((one) => one.name === scope);
    const what = model ? { now: model.now, totals: model.totals } : { now: live.total, totals: live.totals, overloaded: live.refused.find((one) => one.reason === "model_overloaded")?.total };
    const since = f.since(live.started_ms, live.time_ms);
    const times = [...history.times, live.time_ms];
    for (const card of this.cards) card.update(times, model ? scope : "", what, since, sources, live.history_seconds * 1000);
  }

  /** A model keeps its colour. */
  #color(name) {
    if (name === f.NO_MODEL) return 7;
    if (!this.colors.has(name)) this.colors.set(name, (this.colors.size % 8) + 1);
    return this.colors.get(name);
  }
}
