// A plot of the last quarter of an hour in SVG: lines or stacked areas over time.
// It reads with a pointer and with the arrow keys; colours and sizes of text are the style sheet's.

import { h, s } from "./dom.js";
import { clock, minute } from "./format.js";

const HEIGHT = 150;
const MARGIN = { top: 10, right: 8, bottom: 20, left: 8 };
const SHORTEST_MS = 120_000; // of the time axis: a platform that has just started fills it soon
const STEPS_MS = [30_000, 60_000, 120_000, 300_000]; // between two times that are named
const GAP_MS = 20_000; // without a point: the line ends and begins again, if points are not as far apart anyway
const GAP_SPACES = 2.5;

export class Plot {
  /**
   * series: [{key, name, color: 1…8, style: "solid" | "dashed" | "faint"}]; set again by update
   * format: a value for people; stacked: areas on each other; top: fixed end of the axis; least: its smallest end
   * reference: {value, name}, a line to compare with
   */
  constructor(label, { format, stacked = false, top = null, least = 0, reference = null, empty }) {
    Object.assign(this, { label, format, stacked, top, least, reference });
    this.series = [];
    this.times = [];
    this.at = null; // the index that is read
    this.grid = s("g", { class: "grid" });
    this.lines = s("g");
    this.over = s("g", { class: "grid" });
    this.cursor = s("g", { class: "cursor" });
    this.svg = s("svg", { height: HEIGHT, "aria-hidden": "true" }, this.grid, this.lines, this.over, this.cursor);
    this.reading = h("p", { class: "reading", "aria-live": "polite" });
    this.empty = h("p", { class: "empty" }, empty);
    this.legend = h("ul", { class: "legend" });
    this.frame = h("div", { class: "plot", tabindex: "0", role: "group", "aria-roledescription": "plot" }, this.svg, this.reading, this.empty);
    this.element = h("div", {}, this.frame, this.legend);
    this.frame.addEventListener("pointermove", (event) => this.#point(event));
    this.frame.addEventListener("pointerdown", (event) => this.#point(event));
    this.frame.addEventListener("pointerleave", (event) => event.pointerType !== "touch" && this.#read(null)); // a finger that is lifted
    this.frame.addEventListener("keydown", (event) => this.#key(event));
    this.frame.addEventListener("blur", () => this.#read(null));
    new ResizeObserver(() => this.draw()).observe(this.frame);
  }

  /** times: ms; series with `values`, one for each time. */
  update(times, series, span) {
    this.times = times;
    this.span = span;
    this.#nameSeries(series);
    this.series = series;
    this.draw();
  }

  #nameSeries(series) {
    const name = (one) => `${one.key} ${one.name} ${one.color} ${one.style}`;
    if (series.map(name).join() === this.series.map(name).join()) return;
    const item = (one) => h("li", { class: `c${one.color} ${one.style ?? ""}` }, h("span", { class: "swatch" }), one.name);
    this.legend.replaceChildren(...series.map(item));
    this.legend.hidden = series.length < 2;
  }

  draw() {
    const width = this.frame.clientWidth;
    if (!width) return;
    this.width = width;
    this.svg.setAttribute("width", width);
    this.#shape();
    const drawn = this.series.some((one) => one.values.some((value) => value !== null));
    this.empty.hidden = drawn;
    this.#drawGrid();
    this.lines.replaceChildren(...(drawn ? this.#drawSeries() : []));
    this.#read(this.at === null ? null : Math.min(this.at, this.times.length - 1), "off");
    this.frame.setAttribute("aria-label", this.#words());
  }

  // --- scales

  #shape() {
    const last = this.times.at(-1) ?? Date.now();
    const first = Math.max(last - this.span, Math.min(this.times[0] ?? last, last - SHORTEST_MS));
    this.x = (ms) => MARGIN.left + ((ms - first) / (last - first)) * (this.width - MARGIN.left - MARGIN.right);
    this.first = first;
    this.last = last;
    this.gap = Math.max(GAP_MS, GAP_SPACES * spacing(this.times));
    this.levels = this.stacked ? stack(this.series) : this.series.map((one) => one.values);
    const highest = Math.max(this.least, ...this.levels.flat().map((value) => value ?? 0));
    this.ticks = ticks(this.top ?? highest, this.top !== null);
    const end = this.ticks.at(-1);
    this.y = (value) => HEIGHT - MARGIN.bottom - (Math.min(value, end) / end) * (HEIGHT - MARGIN.top - MARGIN.bottom);
  }

  // --- drawing

  #drawGrid() {
    const across = (y) => s("line", { x1: MARGIN.left, x2: this.width - MARGIN.right, y1: y, y2: y });
    const horizontal = this.ticks.map((value) => across(this.y(value)));
    const names = this.ticks.slice(1).map((value) => s("text", { x: MARGIN.left, y: this.y(value) + 11 }, this.format(value)));
    const step = STEPS_MS.find((ms) => (this.last - this.first) / ms <= 5) ?? STEPS_MS.at(-1);
    const vertical = [];
    for (let at = Math.ceil(this.first / step) * step; at <= this.last; at += step) {
      const x = this.x(at);
      const half = step < 60_000 ? 28 : 18; // of the label
      if (x < half || x > this.width - half) continue;
      vertical.push(s("text", { x, y: HEIGHT - 5, "text-anchor": "middle" }, step < 60_000 ? clock(at) : minute(at)));
      vertical.push(s("line", { x1: x, x2: x, y1: HEIGHT - MARGIN.bottom, y2: HEIGHT - MARGIN.bottom + 3 }));
    }
    this.grid.replaceChildren(...horizontal, ...vertical);
    this.over.replaceChildren(...names, ...this.#drawReference());
  }

  #drawReference() {
    if (!this.reference || this.reference.value > this.ticks.at(-1)) return [];
    const y = this.y(this.reference.value);
    const line = s("line", { class: "reference", x1: MARGIN.left, x2: this.width - MARGIN.right, y1: y, y2: y });
    return [line, s("text", { class: "reference", x: this.width - MARGIN.right, y: y - 4, "text-anchor": "end" }, this.reference.name)];
  }

  #drawSeries() {
    return this.#layers((one, i) => {
      const color = `c${one.color} ${one.style ?? ""}`;
      const drawn = [s("path", { class: `line ${color}`, d: this.#path(this.levels[i]) }), ...this.#drawLonely(i, color)];
      return this.stacked ? [s("path", { class: `area ${color}`, d: this.#area(this.levels[i], this.levels[i - 1]) }), ...drawn] : drawn;
    });
  }

  /** Later ones lie on top, but not in a stack: one that adds nothing would hide the line of the one below it. */
  #layers(draw) {
    const layers = this.series.map(draw);
    return (this.stacked ? layers.reverse() : layers).flat();
  }

  /** A value with a gap on both sides would be no line at all. */
  #drawLonely(i, color) {
    const values = this.levels[i];
    const lonely = this.#runs(values).filter((run) => run.length === 1);
    return lonely.map(([k]) => s("circle", { class: `dot ${color}`, cx: this.x(this.times[k]), cy: this.y(values[k]), r: 1.6 }));
  }

  #runs(values) {
    const runs = [];
    values.forEach((value, i) => {
      if (value === null || this.times[i] < this.first) return;
      const begins = (values[i - 1] ?? null) === null || this.times[i] - this.times[i - 1] > this.gap || !runs.length;
      if (begins) runs.push([]);
      runs.at(-1).push(i);
    });
    return runs;
  }

  #path(values) {
    const point = (i) => `${this.x(this.times[i]).toFixed(1)} ${this.y(values[i]).toFixed(1)}`;
    return this.#runs(values).map((run) => `M${run.map(point).join("L")}`).join("");
  }

  #area(upper, lower) {
    const point = (i, value) => `${this.x(this.times[i]).toFixed(1)} ${this.y(value).toFixed(1)}`;
    const closed = (run) => {
      const over = run.map((i) => point(i, upper[i]));
      const under = run.map((i) => point(i, lower?.[i] ?? 0)).reverse();
      return `M${[...over, ...under].join("L")}Z`;
    };
    return this.#runs(upper).map(closed).join("");
  }

  // --- reading

  #point(event) {
    const x = event.clientX - this.frame.getBoundingClientRect().left;
    const distance = this.times.map((at) => Math.abs(this.x(at) - x));
    this.#read(distance.length ? distance.indexOf(Math.min(...distance)) : null);
  }

  #key(event) {
    const last = this.times.length - 1;
    const now = this.at ?? last + 1;
    const visible = Math.max(0, this.times.findIndex((at) => at >= this.first));
    const moves = { ArrowLeft: now - 1, ArrowRight: now + 1, PageUp: now - 12, PageDown: now + 12, Home: visible, End: last, Escape: null };
    if (last < 0 || !(event.key in moves)) return;
    event.preventDefault();
    const to = moves[event.key];
    this.#read(to === null ? null : Math.min(Math.max(to, visible), last));
  }

  /** `aloud`: what a screen reader makes of it. What is read anew each second is not told again. */
  #read(at, aloud = "polite") {
    this.at = at;
    this.reading.setAttribute("aria-live", aloud);
    this.reading.hidden = at === null || !this.empty.hidden;
    if (this.reading.hidden) {
      this.cursor.replaceChildren();
      return;
    }
    const x = this.x(this.times[at]);
    const value = (one) => h("span", { class: `c${one.color}` }, h("span", { class: "swatch" }), `${one.name} `, h("b", {}, this.format(one.values[at])));
    this.reading.replaceChildren(h("span", { class: "at" }, clock(this.times[at])), ...this.series.map(value));
    const right = x > this.width / 2;
    this.reading.style.left = right ? "auto" : `${x + 10}px`;
    this.reading.style.right = right ? `${this.width - x + 10}px` : "auto";
    const dots = this.#layers((one, i) => (this.levels[i][at] === null ? [] : [s("circle", { class: `c${one.color}`, cx: x, cy: this.y(this.levels[i][at]), r: 3 })]));
    this.cursor.replaceChildren(s("line", { x1: x, x2: x, y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }), ...dots);
  }

  #words() {
    const now = this.series.map((one) => `${one.name} ${this.format(one.values.at(-1) ?? null)}`).join(", ");
    return `${this.label}. Now: ${now || "nothing"}. The arrow keys read earlier values.`;
  }
}

/** Between two points as a rule: the median. */
function spacing(times) {
  const spaces = times.slice(1).map((ms, i) => ms - times[i]);
  return spaces.sort((a, b) => a - b)[spaces.length >> 1] ?? 0;
}

/** Each series on top of those before it; where one has nothing, it adds nothing. */
function stack(series) {
  let below = null;
  return series.map((one) => {
    const level = one.values.map((value, i) => (value === null && below?.[i] == null ? null : (value ?? 0) + (below?.[i] ?? 0)));
    below = level;
    return level;
  });
}

/** From 0 to at least the highest, at round numbers. */
function ticks(highest, exact) {
  if (exact) return [0, highest / 2, highest];
  if (!highest) return [0, 1];
  const rough = highest / 3;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough) * power;
  return Array.from({ length: Math.ceil(highest / step - 1e-9) + 1 }, (_, i) => i * step);
}
