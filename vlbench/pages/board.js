// One board at a time: the choice of it, the filters, and what follows from them.

const data = JSON.parse(document.getElementById("data").textContent);
const by = (id) => document.getElementById(id);
const state = { board: null, sort: { column: null, down: false }, opened: new Set(), lit: null };

function options(select, pairs) {
  select.replaceChildren(...pairs.map(([value, text]) => make("option", { value }, text)));
}

function open(board) {
  state.board = board;
  state.sort = { column: null, down: false };
  state.opened = new Set();
  for (const row of board.rows) row.text ??= [...row.cells, ...row.details, row.section].join(" ").toLowerCase();
  by("subject").textContent = board.title;
  by("facts").textContent = board.facts;
  options(by("pattern"), [["", "all"], ...[...new Set(board.rows.map((row) => row.pattern))].map((name) => [name, name])]);
  by("flags").replaceChildren(...board.flags.map(([flag, meaning]) => make("div", {}, make("dt", {}, flag), make("dd", {}, meaning))));
  by("quotes").replaceChildren(...quoteTable(board.published));
  by("quoted").hidden = !board.published.length;
  show();
}

function show() {
  const wanted = Object.fromEntries(["search", "pattern", "training"].map((id) => [id, by(id).value]));
  const rows = shown(state.board.rows, wanted);
  showTable(rows);
  showCharts(rows);
}

function showTable(rows) {
  const { board, sort } = state;
  const ordered = sorted(rows, sort.column, sort.down);
  const kept = document.activeElement?.closest?.("thead th");
  const index = kept ? [...kept.parentElement.children].indexOf(kept) : -1;
  by("table").replaceChildren(header(data.columns, board, sort, sortBy), ...body(ordered, data.columns, data.details, by("group").value, state.opened, toggle));
  by("count").textContent = rows.length === board.rows.length ? `${rows.length} rows` : `${rows.length} of ${board.rows.length} rows`;
  by("table").parentElement.classList.toggle("long", rows.length > 30);
  if (index >= 0) by("table").querySelectorAll("thead button")[index].focus();
}

// One way, the other, and back to the board's own order. What can be better begins with the best.
function sortBy(column) {
  const { board, sort } = state, first = Boolean(data.columns[column].best) && board.higher;
  state.sort = sort.column !== column ? { column, down: first } : sort.down === first ? { column, down: !first } : { column: null, down: false };
  show();
}

function toggle(row, element, button) {
  const opening = !state.opened.delete(row);
  button.setAttribute("aria-expanded", String(opening));
  if (opening) {
    state.opened.add(row);
    element.after(more(row, data.columns, data.details));
  } else {
    element.nextElementSibling.remove();
  }
}

function showCharts(rows) {
  const { board } = state;
  const scale = by("scale").value, quoted = by("published").checked;
  const theirs = quoted ? board.published.filter((one) => scale === "fraction" || !board.tiny) : [];
  const patterns = [...new Set(board.rows.map((row) => row.pattern))];
  const look = (row) => {
    const at = patterns.indexOf(row.pattern);
    return { shape: at % SHAPES.length, colour: `var(--c${at % 8})`, filled: row.dense || row.training === "trained", radius: row.dense ? 6.5 : 4 };
  };
  for (const row of board.rows) row.marks = [];
  state.lit = null;
  by("charts").replaceChildren(...[0, 1].map((axis) => chart(axis, board, rows, theirs, scale, look, pick)));
  const kinds = [...new Map(rows.map((row) => [row.section, row])).values()];
  by("legend").replaceChildren(...kinds.map((row) => make("li", {}, sample(look(row)), row.section)),
    ...(theirs.length ? [make("li", {}, sample({ shape: -1 }), "published")] : []), make("li", {}, "dashed: Pareto front of the rows shown"));
  by("chart-note").textContent = note(board, scale, quoted, theirs);
}

function note(board, scale, quoted, theirs) {
  if (theirs.length && scale === "fraction") return data.notes.fraction;
  if (theirs.length) return data.notes.size;
  return quoted && board.published.length ? data.notes.none : "";
}

// The points of the row that the mouse or the focus is in; one listener for all rows.
function light(event) {
  const row = event.target.closest("tr.row")?.row ?? null;
  if (row === state.lit) return;
  for (const one of [state.lit, row]) for (const mark of one?.marks ?? []) mark.classList.toggle("lit", one === row);
  state.lit = row;
}

function dim(event) {
  if (!event.currentTarget.contains(event.relatedTarget)) light({ target: event.currentTarget });
}

function pick(row) {
  for (const other of by("table").querySelectorAll("tr.lit")) other.classList.remove("lit");
  row.element.classList.add("lit");
  row.element.scrollIntoView({ block: "center" });
  row.element.querySelector("button").focus({ preventScroll: true });
}

function choose(board) {
  history.replaceState(null, "", anchor(board));
  open(board);
}

function anchor(board) {
  return `#${encodeURIComponent(board.id)}`;
}

// A task has a board for each model (and for each split and way of evaluation) that it was measured with.
function chooseTask(boards, chosen) {
  const select = make("select", { id: "model" });
  options(select, boards.map((board) => [board.id, board.title]));
  select.value = chosen.id;
  select.addEventListener("change", () => choose(boards.find((board) => board.id === select.value)));
  by("places").replaceChildren(make("label", {}, "model", select));
  by("places").hidden = boards.length < 2;
  choose(chosen);
}

function start() {
  const asked = data.boards.find((board) => anchor(board) === location.hash) ?? data.boards[0];
  by("scale").value = asked.tiny ? "fraction" : "size";
  for (const id of ["search", "pattern", "training", "group", "scale", "published"]) by(id).addEventListener("input", show);
  for (const event of ["mouseover", "focusin"]) by("table").addEventListener(event, light);
  for (const event of ["mouseout", "focusout"]) by("table").addEventListener(event, dim);
  for (const task of new Set(data.boards.map((board) => board.task))) {
    const boards = data.boards.filter((board) => board.task === task);
    const input = make("input", { type: "radio", name: "task", value: task, checked: task === asked.task });
    input.addEventListener("change", () => chooseTask(boards, boards[0]));
    by("tasks").append(make("label", {}, input, make("span", {}, task)));
    if (task === asked.task) chooseTask(boards, asked);
  }
}

start();
