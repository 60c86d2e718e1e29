// Everything below the plots: models, arms, usage, budgets, limits, the processor itself.

import { h, Meter, say } from "./dom.js";
import * as f from "./format.js";
import { Table } from "./table.js";

/** A column of figures. */
const figure = (name, value, write, title) => ({ name, title, numeric: true, value, text: (row) => write(value(row)) });
const word = (name, value) => ({ name, value, text: value });

/** A cell that keeps its parts: `make` builds them once, `set` fills them in. */
const parts = (column, make, set) => ({
  ...column,
  cell: (td, row) => {
    if (!td.parts) {
      td.parts = make(row);
      td.append(...Object.values(td.parts).map((part) => part.element ?? part));
    }
    set(td.parts, row);
  },
});

/** `most`: how many at once, 0 = no limit, which `free` has words for. */
const underWay = (most, label, free) =>
  parts(
    { name: "Under way", numeric: true, value: (row) => (most(row) ? row.in_flight / most(row) : null) },
    (row) => ({ text: h("span"), meter: new Meter(label(row)) }),
    ({ text, meter }, row) => {
      const words = most(row) ? `${f.count(row.in_flight)} of ${f.count(most(row))}` : free(row);
      say(text, words);
      meter.element.hidden = !most(row);
      if (most(row)) meter.set(row.in_flight / most(row), words);
    },
  );

const stateOf = (model) => (model.state === "up" ? "up" : model.state || "not configured");

export function models() {
  const state = parts({ name: "State", value: stateOf }, () => ({ dot: h("span", { class: "dot" }), text: h("span") }), ({ dot, text }, row) => {
    dot.dataset.state = row.name === "" ? "none" : row.state === "up" ? "ok" : row.state ? "bad" : "none";
    say(text, row.name === "" ? "refused or not decided" : stateOf(row));
  });
  return new Table(
    "Models, with their figures of the last seconds",
    [
      word("Model", (row) => row.name || f.NO_MODEL),
      state,
      underWay((row) => row.room, (row) => `Requests under way at ${row.name || f.NO_MODEL}`, (row) => (row.name ? f.count(row.in_flight) : f.NOTHING)),
      figure("Requests", (row) => row.now.requests_per_second, f.rate),
      figure("TTFT p50", (row) => row.now.ttft_p50_seconds, f.time, "Time to first token of streamed answers, median"),
      figure("TTFT p95", (row) => row.now.ttft_p95_seconds, f.time, "Time to first token of streamed answers, 95th percentile"),
      figure("Per token", (row) => row.now.token_p50_seconds, f.time, "Time between two tokens of a stream, median"),
      figure("Answer p95", (row) => row.now.duration_p95_seconds, f.time, "From the request’s first byte to the answer’s last"),
      figure("Tokens written", (row) => row.now.completion_tokens_per_second, f.rate),
      figure("Hit rate", (row) => row.now.hit_ratio, f.percent, "Of the requests that looked into the response cache"),
      figure("Failed", (row) => row.now.failed_ratio, f.percent, "Answers with status 5xx"),
      figure("Cost", (row) => row.now.usd_per_hour, f.moneyPerHour),
      figure("Since start", (row) => row.totals.requests, f.count, "Requests since this processor’s start"),
    ],
    { key: (row) => row.name, empty: "No model is configured." },
  );
}

export function arms() {
  const share = parts(
    { name: "Share", numeric: true, value: (row) => row.share },
    (row) => ({ text: h("span"), meter: new Meter(`Share of ${row.model} ${row.arm}`) }),
    ({ text, meter }, row) => {
      say(text, f.percent(row.share));
      meter.set(row.share, f.percent(row.share));
      meter.element.dataset.level = "share";
    },
  );
  return new Table(
    "Requests by model and arm",
    [
      word("Model", (row) => row.model),
      word("Arm", (row) => row.arm),
      share,
      figure("Requests", (row) => row.now.requests_per_second, f.rate),
      figure("TTFT p95", (row) => row.now.ttft_p95_seconds, f.time, "Time to first token of streamed answers, 95th percentile"),
      figure("Answer p95", (row) => row.now.duration_p95_seconds, f.time),
      figure("Failed", (row) => row.now.failed_ratio, f.percent, "Answers with status 5xx"),
      figure("Tokens written", (row) => row.now.completion_tokens_per_second, f.rate),
      figure("Cost", (row) => row.now.usd_per_hour, f.moneyPerHour),
      figure("Since start", (row) => row.totals.requests, f.count, "Requests since this processor’s start"),
    ],
    { key: (row) => `${row.model} ${row.arm}`, empty: "No request has gone to a backend yet." },
  );
}

const TITLES = { tenant: "Tenant", user: "User", model: "Model", arm: "Arm", key: "Key" };
const BLANK = { model: f.NO_MODEL, arm: "(no backend asked)" };

export function usage(by) {
  const names = by.map((dimension, i) => word(TITLES[dimension], (row) => (row.total ? (i ? "" : row.total) : row.names[i] || BLANK[dimension] || "–")));
  return new Table(
    `Usage by ${by.join(" and ")}`,
    [
      ...names,
      figure("Cost", (row) => row.usd, f.money),
      figure("Requests", (row) => row.requests, f.count),
      figure("Cache hits", (row) => (row.requests ? row.hits / row.requests : null), f.percent, "Of all requests"),
      figure("Errors", (row) => row.errors, f.count, "Status 400 or more, or no answer"),
      figure("Tokens read", (row) => row.prompt_tokens, f.number, "Prompt tokens"),
      figure("Tokens written", (row) => row.completion_tokens, f.number, "Completion tokens"),
      figure("Per 1M tokens", (row) => row.usd_per_million_tokens, f.money),
    ],
    { key: (row) => row.names.join("\n"), sort: { name: "Cost", descending: true }, empty: "Nothing was used in this period." },
  );
}

export function showUsage(table, answer) {
  const rest = answer.count - answer.lines.length;
  const note = rest ? `The ${f.count(answer.lines.length)} dearest of ${f.count(answer.count)}; the others together: ${f.money(answer.others.usd)}, ${f.count(answer.others.requests)} requests.` : "";
  table.update(answer.lines, answer.lines.length > 1 ? { ...answer.total, total: "All together" } : null, note);
}

export function budgets() {
  const used = parts(
    { name: "Used", numeric: true, value: (row) => row.used_ratio },
    (row) => ({ text: h("span"), meter: new Meter(`Budget of ${row.tenant}`) }),
    ({ text, meter }, row) => {
      say(text, row.used_ratio === null ? "no budget" : f.percent(row.used_ratio));
      meter.element.hidden = row.used_ratio === null;
      meter.set(row.used_ratio, f.percent(row.used_ratio), row.month_ratio);
    },
  );
  return new Table(
    "Budgets of this month by tenant",
    [word("Tenant", (row) => row.tenant), figure("Spent", (row) => row.spent_usd, f.money), figure("Budget", (row) => row.budget_usd || null, f.money), used],
    { key: (row) => row.tenant, empty: "No tenant has used anything yet." },
  );
}

const level = (name, what) =>
  parts(
    { name, numeric: true, value: (row) => row[what]?.used_ratio ?? null },
    (row) => ({ text: h("span"), meter: new Meter(`${name} of ${row.tenant} ${row.user}`) }),
    ({ text, meter }, row) => {
      const one = row[what];
      const words = one ? `${f.number(one.left)} of ${f.number(one.size)} left (${f.perMinute(one.per_minute)})` : "no limit";
      say(text, words);
      meter.element.hidden = !one;
      if (one) meter.set(one.used_ratio, words);
    },
  );

export function limits() {
  return new Table(
    "Rate limits of the callers of today",
    [
      word("Tenant", (row) => row.tenant),
      word("User", (row) => row.user),
      word("Key", (row) => row.key_id),
      level("Requests a minute", "requests"),
      level("Tokens a minute", "tokens"),
      underWay((row) => row.max_in_flight, (row) => `Requests under way of ${row.tenant} ${row.user}`, () => "no limit"),
    ],
    { key: (row) => `${row.tenant} ${row.user} ${row.key_id}`, empty: "Nobody has asked today." },
  );
}

export function refused() {
  return new Table(
    "Refused requests by error code",
    [word("Error code", (row) => row.reason), figure("Now", (row) => row.per_minute, f.perMinute), figure("Since start", (row) => row.total, f.count)],
    { key: (row) => row.reason, empty: "Nothing was refused since this processor’s start." },
  );
}

/** The list of what this processor is and how it does. */
export class Platform {
  constructor(list) {
    this.list = list;
    this.known = new Map();
  }

  update(live) {
    const { health } = live;
    const busy = live.workers.map((worker) => `${worker.worker}: ${f.percent(worker.cpu_ratio)} of a core`).join(", ");
    this.#set("Store (Redis)", health.redis, health.redis === "up");
    this.#set("Workers", `${health.workers.alive} of ${health.workers.wanted}${busy ? ` — ${busy}` : ""}`, health.workers.alive === health.workers.wanted);
    this.#set("Configuration", health.config.errors[0] ?? (health.config.revisions.join(", ") || "–"), !health.config.errors.length);
    this.#set("Settlements that wait for the store", f.count(health.settlement_backlog), health.settlement_backlog === 0);
    this.#set("Reservations without a receipt", f.count(live.unsettled), live.unsettled === 0);
    this.#set("Platform’s own time, p50 and p95", `${f.time(live.total.overhead_p50_seconds)}, ${f.time(live.total.overhead_p95_seconds)}`, true);
    this.#set("Version", live.version, true);
  }

  #set(name, text, good) {
    if (!this.known.has(name)) {
      const value = h("dd");
      this.known.set(name, value);
      this.list.append(h("div", {}, h("dt", {}, name), value));
    }
    const value = this.known.get(name);
    value.dataset.state = good ? "ok" : "bad";
    say(value, text);
  }
}

/** What is wrong, in words; nothing if nothing is. */
export function troubles(health) {
  const found = [];
  if (health.status === "down") return ["No worker answers: every request gets 503."];
  if (health.workers.alive < health.workers.wanted) found.push(`${health.workers.alive} of ${health.workers.wanted} workers run.`);
  if (health.redis !== "up") found.push("Redis is away: no cache, limits are each worker’s own.");
  for (const [model, state] of Object.entries(health.models)) if (state !== "up") found.push(`${model}: ${state}.`);
  for (const error of health.config.errors) found.push(`The configuration file can not be used: ${error}`);
  return found;
}
