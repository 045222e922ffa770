// Quality against parameters and against MACs: points, their intervals, the Pareto front, and what was published.

const WIDE = 460, HIGH = 320, LEFT = 50, RIGHT = 14, TOP = 26, BOTTOM = 40;
const WHISKERS = 80; // points up to which intervals are drawn: more of them would hide the points
const SHAPES = [
  (x, y, r) => `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`,
  (x, y, r) => `M${x - r} ${y - r}h${2 * r}v${2 * r}h${-2 * r}z`,
  (x, y, r) => `M${x} ${y - 1.3 * r}l${1.3 * r} ${2.3 * r}h${-2.6 * r}z`,
  (x, y, r) => `M${x} ${y - 1.4 * r}l${1.4 * r} ${1.4 * r}l${-1.4 * r} ${1.4 * r}l${-1.4 * r} ${-1.4 * r}z`,
  (x, y, r) => `M${x} ${y + 1.3 * r}l${1.3 * r} ${-2.3 * r}h${-2.6 * r}z`,
];
const CROSS = (x, y, r) => `M${x - r} ${y - r}l${2 * r} ${2 * r}M${x - r} ${y + r}l${2 * r} ${-2 * r}`;

function draw(name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

// Less of x is better, and more of y (or less of it: `sign` is -1). The points that no other one beats, from small to large.
function paretoFront(points, sign) {
  let best = -Infinity;
  return [...points].sort((a, b) => a.x - b.x || sign * (b.y - a.y)).filter((point) => sign * point.y > best && ((best = sign * point.y), true));
}

// Up to about `count` round numbers in [low, high].
function ticks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high + 1e-9 * step; at += 1) found.push(at * step);
  return found;
}

function range(values) {
  const low = Math.min(...values), high = Math.max(...values), room = (high - low || Math.abs(high) || 1) * 0.06;
  return [low - room, high + room];
}

// size: [parameters, MACs, value, low, high]; as shares of the dense model, or as counted.
function place(one, axis, scale) {
  const size = scale === "fraction" ? one.fraction : one.size;
  if (!size || size[axis] === null || size[2] === null) return null;
  const y = scale === "fraction" ? 100 : 1, x = scale === "fraction" ? 100 : axis ? 1e-9 : 1e-6;
  const ends = size[3] === undefined || size[3] === null ? null : [y * size[3], y * size[4]];
  return { x: x * size[axis], y: y * size[2], ends, one };
}

function chart(axis, board, rows, published, scale, look, onPick) {
  const points = rows.map((row) => place(row, axis, scale)).filter(Boolean);
  const theirs = published.map((one) => place(one, axis, scale)).filter(Boolean);
  const what = axis ? "MACs" : "parameters", unit = scale === "fraction" ? "% of the dense model" : axis ? "10⁹" : "10⁶";
  const label = `${board.metric} against ${what}: ${points.length} rows, ${theirs.length} published results; the table has the numbers`;
  const svg = draw("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": label });
  const all = [...points, ...theirs];
  if (!all.length) {
    svg.append(draw("text", { x: WIDE / 2, y: HIGH / 2, "text-anchor": "middle" }, `no ${what} to show`));
    return svg;
  }
  const [x0, x1] = range(all.map((p) => p.x)), [y0, y1] = range(all.map((p) => p.y));
  const at = (p) => [LEFT + (WIDE - LEFT - RIGHT) * (p.x - x0) / (x1 - x0), HIGH - BOTTOM - (HIGH - TOP - BOTTOM) * (p.y - y0) / (y1 - y0)];
  axes(svg, [x0, x1], [y0, y1], at, `${what} left (${unit})`, scale === "fraction" ? `${board.metric} (% of the dense model's)` : board.metric);
  for (const point of theirs) {
    const mark = draw("path", { class: "published", d: CROSS(...at(point), 4) });
    mark.append(draw("title", {}, `published: ${point.one.name}, ${point.y.toFixed(1)} at ${point.x.toFixed(1)}. ${point.one.protocol}`));
    svg.append(mark);
  }
  const front = paretoFront(points, board.higher ? 1 : -1);
  svg.append(draw("path", { class: "front", d: stairs(front, at) }));
  for (const point of points) mark(svg, point, at, look(point.one), points.length <= WHISKERS, onPick);
  return svg;
}

function stairs(front, at) {
  return front.map((point, i) => {
    const [x, y] = at(point);
    return i ? `H${x.toFixed(1)}V${y.toFixed(1)}` : `M${x.toFixed(1)} ${y.toFixed(1)}`;
  }).join("");
}

function mark(svg, point, at, { shape, colour, filled, radius }, whiskers, onPick) {
  const [x, y] = at(point);
  if (whiskers && point.ends) {
    const [from, to] = point.ends.map((end) => Math.min(HIGH - BOTTOM, Math.max(TOP, at({ x: point.x, y: end })[1])));
    const bar = draw("path", { class: "bar", d: `M${x} ${from}V${to}` });
    bar.style.stroke = colour;
    svg.append(bar);
  }
  const element = draw("path", { class: "point", d: SHAPES[shape](x, y, radius) });
  element.style.stroke = colour;
  element.style.fill = filled ? colour : "var(--panel)";
  element.append(draw("title", {}, `${point.one.cells[0]}, ${point.one.section}: ${point.y.toFixed(1)} at ${point.x.toFixed(1)}`));
  element.addEventListener("click", () => onPick(point.one));
  (point.one.marks ||= []).push(element);
  svg.append(element);
}

function axes(svg, [x0, x1], [y0, y1], at, below, above) {
  const digits = (values) => (values.length > 1 && values[1] - values[0] < 1 ? 2 : 0);
  const across = ticks(x0, x1, 6), up = ticks(y0, y1, 6);
  for (const value of across) {
    const [x] = at({ x: value, y: y0 });
    svg.append(draw("path", { class: "tick", d: `M${x} ${TOP}V${HIGH - BOTTOM}` }), draw("text", { x, y: HIGH - BOTTOM + 15, "text-anchor": "middle" }, value.toFixed(digits(across))));
  }
  for (const value of up) {
    const [, y] = at({ x: x0, y: value });
    svg.append(draw("path", { class: "tick", d: `M${LEFT} ${y}H${WIDE - RIGHT}` }), draw("text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" }, value.toFixed(digits(up))));
  }
  svg.append(draw("text", { class: "title", x: (LEFT + WIDE - RIGHT) / 2, y: HIGH - 8, "text-anchor": "middle" }, below), draw("text", { class: "title", x: 8, y: 16 }, above));
}

function sample({ shape, colour, filled, radius }) {
  const svg = draw("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" });
  const path = draw("path", { d: shape < 0 ? CROSS(8, 8, 4) : SHAPES[shape](8, 8, radius), class: shape < 0 ? "published" : "point" });
  if (shape >= 0) {
    path.style.stroke = colour;
    path.style.fill = filled ? colour : "none";
  }
  svg.append(path);
  return svg;
}
