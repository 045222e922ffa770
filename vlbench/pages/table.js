// The table of rows: sorting, grouping, filtering and what a row tells when it is opened.
// Every text goes in by textContent: nothing that data say is ever read as HTML.

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

// Numbers before texts, nothing at the end whichever way it goes; equal ones stay in the board's order.
function compare(a, b, down) {
  if (a === null || b === null) return (a === null) - (b === null);
  const order = typeof a === "number" && typeof b === "number" ? a - b : String(a) < String(b) ? -1 : String(a) > String(b) ? 1 : 0;
  return down ? -order : order;
}

function sorted(rows, column, down) {
  if (column === null) return rows;
  return rows.map((row, at) => [row, at]).sort(([a, i], [b, j]) => compare(a.keys[column], b.keys[column], down) || i - j).map(([row]) => row);
}

function shown(rows, wanted) {
  const words = wanted.search.toLowerCase().split(/\s+/).filter(Boolean);
  return rows.filter((row) =>
    (!wanted.pattern || row.pattern === wanted.pattern) &&
    (!wanted.training || row.training === wanted.training) &&
    words.every((word) => row.text.includes(word)));
}

function grouped(rows, by) {
  const groups = new Map();
  for (const row of rows) {
    const name = by ? row[by] : "";
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(row);
  }
  return groups;
}

function header(columns, board, sort, onSort) {
  const line = make("tr");
  columns.forEach((column, at) => {
    const state = sort.column !== at ? "none" : sort.down ? "descending" : "ascending";
    const button = make("button", { type: "button", title: column.title }, column.label || board.metric);
    button.addEventListener("click", () => onSort(at));
    line.append(make("th", { scope: "col", "aria-sort": state, class: classes(column) }, button));
  });
  return make("thead", {}, line);
}

function classes(column) {
  return [column.text ? "text" : "", column.spare && `spare-${column.spare}`].join(" ").trim() || null;
}

function line(row, columns, opened, onOpen) {
  const first = make("button", { type: "button", "aria-expanded": String(opened) }, row.cells[0]);
  const element = make("tr", { class: row.dense ? "row dense" : "row" }, make("th", { scope: "row" }, first));
  element.row = row;
  first.addEventListener("click", () => onOpen(row, element, first));
  columns.slice(1).forEach((column, at) => {
    const mark = column.key === "delta" ? row.verdict : column.key === "flags" ? "flags" : "";
    element.append(make("td", { class: [classes(column) || "", mark].join(" ").trim() || null }, row.cells[at + 1]));
  });
  return element;
}

function more(row, columns, details) {
  const list = make("dl");
  const tell = (label, text, narrow) => text && list.append(make("div", { class: narrow && `narrow spare-${narrow}` }, make("dt", {}, label), make("dd", {}, text)));
  columns.forEach((column, at) => column.spare && tell(column.label, row.cells[at], column.spare));
  details.forEach((label, at) => tell(label, row.details[at], false));
  for (const [label, text] of row.metrics) tell(label, text, false);
  const towers = row.towers.map(([name, gone]) => make("div", { class: "tower" }, make("span", {}, name),
    make("meter", { min: 0, max: 1, value: gone, "aria-label": `${name}: removed` }), make("span", {}, `${(100 * gone).toFixed(1)}%`)));
  const cell = make("td", { colspan: columns.length }, list);
  if (row.by_seed) cell.append(make("p", {}, make("span", { class: "soft" }, "seeds: "), row.by_seed));
  if (towers.length) cell.append(make("p", { class: "soft" }, "removed of each tower's prunable weights"), ...towers);
  return make("tr", { class: "more" }, cell);
}

function body(rows, columns, details, by, opened, onOpen) {
  const elements = [];
  for (const [name, members] of grouped(rows, by)) {
    const part = make("tbody");
    if (by) part.append(make("tr", {}, make("th", { scope: "rowgroup", colspan: columns.length }, `${name} (${members.length})`)));
    for (const row of members) {
      row.element = line(row, columns, opened.has(row), onOpen);
      part.append(row.element);
      if (opened.has(row)) part.append(more(row, columns, details));
    }
    elements.push(part);
  }
  return elements;
}

function quoteTable(published) {
  const names = ["result", "value", "parameters", "MACs", "protocol and source"];
  const head = make("thead", {}, make("tr", {}, ...names.map((name, at) => make("th", { scope: "col", class: at % 4 ? null : "text" }, name))));
  const lines = published.map((one) => make("tr", {}, make("th", { scope: "row" }, one.name),
    ...one.texts.map((text) => make("td", {}, text)), make("td", { class: "text" }, one.protocol)));
  return [head, make("tbody", {}, ...lines)];
}
