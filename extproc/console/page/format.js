// Numbers as people read them, each with its unit. null is "nothing to measure".

const NARROW = "\u202f"; // between a number and its unit
export const NOTHING = "–";
export const NO_MODEL = "(no model chosen)"; // as the API calls that scope

const plain = (digits) => new Intl.NumberFormat("en-US", { maximumFractionDigits: digits, minimumFractionDigits: 0 });
const fixed = (digits) => new Intl.NumberFormat("en-US", { maximumFractionDigits: digits, minimumFractionDigits: digits });
const whole = plain(0);

const or = (write) => (value) => (value === null || value === undefined ? NOTHING : write(value));

/** 3 significant digits or so, large ones with k, M or G. */
export const number = or((value) => {
  const size = Math.abs(value);
  for (const [limit, letter] of [[1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    if (size >= limit) return short(value / (letter === "k" ? 1e3 : limit)) + letter;
  }
  return short(value);
});

const short = (value) => {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 0.01) return "<0.01";
  return plain(size < 1 ? 2 : size < 100 ? 1 : 0).format(value);
};

export const count = or((value) => whole.format(value));
export const rate = or((value) => `${number(value)}/s`);
export const perMinute = or((value) => `${number(value)}/min`);

export const percent = or((ratio) => {
  const value = ratio * 100;
  if (value > 0 && value < 0.1) return `<0.1${NARROW}%`;
  return `${plain(value < 10 ? 1 : 0).format(value)}${NARROW}%`;
});

/** Of seconds. */
export const time = or((seconds) => {
  if (seconds < 0.0095) return `${plain(1).format(seconds * 1e3)}${NARROW}ms`;
  if (seconds < 1) return `${whole.format(seconds * 1e3)}${NARROW}ms`;
  return `${plain(seconds < 10 ? 2 : 1).format(seconds)}${NARROW}s`;
});

/** Small sums keep two digits that say something. */
export const money = or((usd) => {
  if (usd === 0) return "$0";
  if (usd < 0.0001) return "<$0.0001";
  if (usd < 0.1) return `$${plain(4).format(usd)}`;
  if (usd < 10_000) return `$${fixed(2).format(usd)}`;
  return `$${number(usd)}`;
});
export const moneyPerHour = or((usd) => `${money(usd)}/h`);

const clockOf = (options) => {
  const format = new Intl.DateTimeFormat("en-GB", options);
  return (ms) => format.format(ms);
};
export const clock = clockOf({ hour: "2-digit", minute: "2-digit", second: "2-digit" });
export const minute = clockOf({ hour: "2-digit", minute: "2-digit" });
const dayAndMinute = clockOf({ day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });

/** When something began; the time alone says it for a day. */
export const since = (ms, now) => (now - ms < 86_400_000 ? minute : dayAndMinute)(ms);
