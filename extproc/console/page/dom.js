// The few words that the page is written in. Text is only ever set as text: no string becomes HTML.

/** h("td", {class: "number", onclick: f}, "text", child, …) */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function s(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Change a text only where it differs: a selection in it stays, and nothing is laid out again. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export const byId = (id) => document.getElementById(id);

/** A bar of how full something is. `mark` is a second place on it, such as how much of the month has gone. */
export class Meter {
  constructor(label) {
    this.full = h("span", { class: "full" });
    this.mark = h("span", { class: "mark", hidden: true });
    this.element = h("span", { class: "meter", role: "meter", "aria-label": label, "aria-valuemin": "0", "aria-valuemax": "100" }, this.full, this.mark);
  }

  set(ratio, text, mark = null) {
    const value = Math.min(Math.max(ratio ?? 0, 0), 1);
    this.full.style.width = `${value * 100}%`;
    this.element.dataset.level = ratio >= 1 ? "over" : ratio >= 0.8 ? "high" : "fine";
    this.element.setAttribute("aria-valuenow", String(Math.round(value * 100)));
    this.element.setAttribute("aria-valuetext", text);
    this.mark.hidden = mark === null;
    if (mark !== null) this.mark.style.left = `${mark * 100}%`;
  }
}

/** Radio buttons that look like one control. `changed` is told what is chosen. */
export function choices(fieldset, name, options, chosen, changed) {
  for (const [value, label] of options) {
    const input = h("input", { type: "radio", name, value, onchange: () => changed(value) });
    input.checked = value === chosen;
    fieldset.append(h("label", {}, input, h("span", {}, label)));
  }
}
