// The page: asks once a second for what is live and every five seconds for the accounts, and shows both.
// It rests while nobody looks at it. What fails is said where it would be shown, and tried again.

import { ask, History, Trouble } from "./api.js";
import { Cards } from "./cards.js";
import { byId, choices, h, say } from "./dom.js";
import * as f from "./format.js";
import * as views from "./views.js";

const LIVE_MS = 1_000;
const ACCOUNTS_MS = 5_000;
const BY = [["tenant", "Tenant"], ["user", "User"], ["model", "Model"], ["arm", "Arm"], ["key", "Key"]];
const SPANS = [["today", "Today"], ["week", "7 days"], ["month", "This month"], ["30d", "30 days"]];

const history = new History();
const cards = new Cards(byId("cards"));
const platform = new views.Platform(byId("platform"));
const tables = Object.fromEntries(["models", "arms", "refused", "budgets", "limits"].map((name) => [name, place(name, views[name]())]));
const chosen = { by: "tenant", span: "today", scope: "" };
let usageTable = place("usage", views.usage(["tenant"]));
let shownBy = "tenant";
let last = null; // the last live answer
let paused = false;

function place(name, table) {
  byId(name).replaceChildren(h("p", { class: "trouble", hidden: true }), table.element);
  return table;
}

/** What is wrong with a section, or that nothing is. The figures that it had stay. */
function trouble(name, text) {
  const line = byId(name).querySelector(".trouble");
  line.hidden = !text;
  say(line, text);
}

// --- live

async function live() {
  const answer = await ask(`live?since=${history.since}`);
  if (last && answer.version !== last.version) return location.reload(); // this page is the other version's
  last = answer;
  history.add(last);
  showLive();
}

function showLive() {
  const problems = views.troubles(last.health);
  state(last.health.status, { ok: "All is well", degraded: "Degraded", down: "Down" }[last.health.status]);
  banner(problems, last.health.status === "down");
  say(byId("instance"), last.instance);
  say(byId("updated"), paused ? `stopped at ${f.clock(last.time_ms)}` : f.clock(last.time_ms));
  say(byId("windows"), `rates of the last ${last.rate_seconds} s, times and ratios of the last ${last.ratio_seconds} s`);
  offerScopes(last.models.map((model) => model.name).filter(Boolean));
  cards.update(last, history, chosen.scope);
  tables.models.update(last.models.filter((model) => model.name || model.totals.requests));
  tables.arms.update(last.arms);
  tables.refused.update(last.refused);
  platform.update(last);
}

function offerScopes(names) {
  const select = byId("scope");
  const offered = [...select.options].slice(1).map((option) => option.value);
  if (names.join() === offered.join()) return;
  select.replaceChildren(select.options[0], ...names.map((name) => h("option", { value: name }, name)));
  chosen.scope = names.includes(chosen.scope) ? chosen.scope : "";
  select.value = chosen.scope;
}

function banner(texts, bad = false) {
  const box = byId("banner");
  box.className = texts.length ? `banner ${bad ? "bad" : "warn"}` : "";
  if (texts.join("") !== box.textContent) box.replaceChildren(...texts.map((text) => h("p", {}, text)));
}

function state(what, words) {
  byId("state").dataset.state = what;
  say(byId("state"), words);
  document.title = `${what === "ok" ? "" : `${words} · `}llm-mesh console`;
}

function lost(error) {
  const since = last ? ` The figures are of ${f.clock(last.time_ms)}.` : "";
  banner([`${error.message}${since} Trying again.`], true);
  state("down", "No answer");
}

/** An error of this page's own: said as well, for its figures do not move any more. */
function failed(error) {
  if (error instanceof Trouble) return lost(error);
  banner(["This page and the processor do not fit; please load it again."], true);
  state("down", "Out of date");
  throw error;
}

// --- accounts

async function accounts() {
  await Promise.all([section("usage", usage), section("limits", limits)]);
}

async function section(name, show) {
  try {
    await show();
    trouble(name, "");
    if (name === "limits") trouble("budgets", "");
  } catch (error) {
    if (!(error instanceof Trouble)) throw error;
    trouble(name, error.message);
    if (name === "limits") trouble("budgets", error.message);
  }
}

async function usage() {
  const asked = { by: chosen.by, span: chosen.span };
  const answer = await ask(`usage?by=${asked.by}&span=${asked.span}`, true);
  if (asked.by !== chosen.by || asked.span !== chosen.span) return; // another choice was made meanwhile
  if (shownBy !== asked.by) {
    usageTable = place("usage", views.usage(answer.by));
    shownBy = asked.by;
  }
  views.showUsage(usageTable, answer);
  const days = answer.since === answer.until ? answer.since : `${answer.since} … ${answer.until}`;
  say(byId("usage-note"), `${days} (UTC), as of ${f.clock(answer.time_ms)}`);
}

async function limits() {
  const answer = await ask("limits", true);
  tables.budgets.update(answer.budgets.map((budget) => ({ ...budget, month_ratio: answer.month_ratio })), null, more(answer.budgets, answer.budgets_count));
  tables.limits.update(answer.callers, null, more(answer.callers, answer.callers_count));
  say(byId("budgets-note"), `${answer.month} (UTC), requests under way included; the line marks ${f.percent(answer.month_ratio)} of the month`);
  say(byId("limits-note"), `what is left to today’s callers, as of ${f.clock(answer.time_ms)}; the fullest first`);
}

const more = (shown, all) => (all > shown.length ? `The ${f.count(shown.length)} fullest of ${f.count(all)}.` : "");

// --- round and round

function every(ms, work) {
  let running = false;
  const round = async () => {
    if (running || paused || document.hidden) return;
    running = true;
    try {
      await work();
    } finally {
      running = false;
    }
  };
  setInterval(round, ms);
  document.addEventListener("visibilitychange", round);
  round();
  return round;
}

const liveNow = every(LIVE_MS, () => live().catch(failed));
const accountsNow = every(ACCOUNTS_MS, accounts);

function pause() {
  paused = !paused;
  byId("pause").setAttribute("aria-pressed", String(paused));
  say(byId("pause"), paused ? "Go on" : "Pause");
  if (last) showLive();
  if (!paused) Promise.all([liveNow(), accountsNow()]);
}

function dress(theme) {
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("llm-mesh-theme", theme);
}

choices(byId("by"), "by", BY, chosen.by, (by) => {
  chosen.by = by;
  section("usage", usage);
});
choices(byId("span"), "span", SPANS, chosen.span, (span) => {
  chosen.span = span;
  section("usage", usage);
});
byId("scope").addEventListener("change", (event) => {
  chosen.scope = event.target.value;
  if (last) showLive();
});
byId("pause").addEventListener("click", pause);
for (const input of byId("theme").querySelectorAll("input")) {
  input.checked = input.value === document.documentElement.dataset.theme;
  input.addEventListener("change", () => dress(input.value));
}
