// Tables whose rows stay the same elements while their figures change, sorted by any column from the keyboard too.
// On a narrow screen the style sheet shows each row as a card, with the column's name beside each value.

import { h, say } from "./dom.js";
import { NOTHING } from "./format.js";

/**
 * A column: {name, title, value: row => what to sort by, text: row => string, numeric, cell: (td, row) => …}
 * `cell` draws what text can not; it is called with the same td again and again.
 */
export class Table {
  constructor(label, columns, { key, sort = null, empty }) {
    this.columns = columns;
    this.key = key;
    this.sort = sort; // {name, descending}; null = as the rows come
    this.rows = [];
    this.known = new Map();
    this.heads = columns.map((column) => this.#head(column));
    this.body = h("tbody");
    this.foot = h("tfoot");
    const head = h("thead", {}, h("tr", {}, ...this.heads.map((one) => one.cell)));
    this.table = h("table", {}, h("caption", { class: "hidden" }, label), head, this.body, this.foot);
    this.words = empty; // what is said of no rows; until there is an answer, nothing is known
    this.empty = h("p", { class: "empty" }, "…");
    this.table.hidden = true;
    this.element = h("div", { class: "scroll" }, this.table, this.empty);
  }

  update(rows, total = null, note = "") {
    this.rows = rows;
    this.table.hidden = rows.length === 0;
    this.empty.hidden = rows.length > 0;
    say(this.empty, this.words);
    this.#draw();
    this.foot.replaceChildren(...(total ? [this.#row(total, "", "th")] : []), ...(note ? [this.#note(note)] : []));
  }

  #head(column) {
    if (!column.value) return { cell: h("th", { scope: "col" }, column.name) };
    const button = h("button", { type: "button", title: column.title, onclick: () => this.#sortBy(column) }, column.name);
    return { cell: h("th", { scope: "col", class: column.numeric ? "number" : null }, button), column };
  }

  #sortBy(column) {
    const again = this.sort?.name === column.name;
    this.sort = { name: column.name, descending: again ? !this.sort.descending : Boolean(column.numeric) };
    this.#draw();
  }

  #ordered() {
    for (const { cell, column } of this.heads) {
      const sorted = column && this.sort?.name === column.name;
      if (sorted) cell.setAttribute("aria-sort", this.sort.descending ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    }
    const column = this.columns.find((one) => one.name === this.sort?.name);
    if (!column) return this.rows;
    const sign = this.sort.descending ? -1 : 1;
    return [...this.rows].sort((a, b) => sign * compare(column.value(a), column.value(b)));
  }

  #draw() {
    const seen = new Set();
    const wanted = this.#ordered().map((row) => {
      const key = this.key(row);
      seen.add(key);
      const old = this.known.get(key);
      if (old) this.#fill(old, row);
      else this.known.set(key, this.#row(row, key, "td"));
      return this.known.get(key);
    });
    for (const key of this.known.keys()) if (!seen.has(key)) this.known.delete(key);
    const now = this.body.children;
    if (wanted.length !== now.length || wanted.some((row, i) => row !== now[i])) this.body.replaceChildren(...wanted);
  }

  #row(row, key, tag) {
    const cells = this.columns.map((column, i) => {
      const header = i === 0;
      const attributes = { class: column.numeric ? "number" : null, "data-name": header ? null : column.name };
      return header ? h("th", { scope: "row", ...attributes }) : h(tag, attributes);
    });
    const element = h("tr", { "data-key": key }, ...cells);
    this.#fill(element, row);
    return element;
  }

  #fill(element, row) {
    this.columns.forEach((column, i) => {
      if (column.cell) column.cell(element.children[i], row);
      else say(element.children[i], column.text(row));
      element.children[i].toggleAttribute("data-blank", element.children[i].textContent === NOTHING);
    });
  }

  #note(text) {
    return h("tr", { class: "note" }, h("td", { colspan: this.columns.length }, text));
  }
}

/** Nothing to measure is less than anything. */
function compare(a, b) {
  if (a === b) return 0;
  if (a === null || a === undefined) return -1;
  if (b === null || b === undefined) return 1;
  return a < b ? -1 : 1;
}
