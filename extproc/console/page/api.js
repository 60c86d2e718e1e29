// Asking the processor. What is new since the last answer is all that is sent again.

const TIMEOUT_MS = 5_000;
const SLOW_MS = 25_000; // the store may have a lot to add up

export class Trouble extends Error {}

export async function ask(path, slow = false) {
  let response;
  try {
    response = await fetch(`api/${path}`, { signal: AbortSignal.timeout(slow ? SLOW_MS : TIMEOUT_MS), credentials: "same-origin" });
  } catch {
    throw new Trouble("The processor does not answer.");
  }
  if (response.status === 401) {
    location.assign("login"); // the session has ended
    throw new Trouble("Please sign in again.");
  }
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Trouble(body.error?.message ?? `The processor answers with status ${response.status}.`);
  return body;
}

/** The last quarter of an hour, put together from what each answer adds. */
export class History {
  constructor() {
    this.startedMs = null;
    this.forget();
  }

  forget() {
    this.times = [];
    this.scopes = new Map(); // name -> {field: [value, …]}
  }

  get since() {
    return this.times.at(-1) ?? 0;
  }

  add(live) {
    if (live.started_ms !== this.startedMs) this.forget();
    this.startedMs = live.started_ms;
    const { time_ms: times, scopes } = live.history;
    const added = times.filter((ms) => ms > this.since).length;
    if (!added) return;
    for (const name of new Set([...this.scopes.keys(), ...Object.keys(scopes)])) this.#extend(name, scopes[name], added);
    this.times.push(...times.slice(-added));
    const old = this.times.findIndex((ms) => ms >= live.time_ms - live.history_seconds * 1000);
    if (old > 0) this.#drop(old);
  }

  #extend(name, columns, added) {
    const known = this.scopes.get(name) ?? {};
    for (const field of new Set([...Object.keys(known), ...Object.keys(columns ?? {})])) {
      known[field] ??= Array(this.times.length).fill(null);
      known[field].push(...(columns?.[field]?.slice(-added) ?? Array(added).fill(null)));
    }
    this.scopes.set(name, known);
  }

  #drop(old) {
    this.times.splice(0, old);
    for (const columns of this.scopes.values()) for (const values of Object.values(columns)) values.splice(0, old);
  }

  /** A field's values, and now's at the end. */
  values(scope, field, now) {
    const before = this.scopes.get(scope)?.[field] ?? Array(this.times.length).fill(null);
    return [...before, now?.[field] ?? null];
  }
}
