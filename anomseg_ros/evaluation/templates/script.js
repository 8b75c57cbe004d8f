"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// --- curves: a cursor that reads every series at one place -----------------------------------------------------------
function lineAt(xs, ys, x, steps) {
  let low = 0, high = xs.length - 1;
  if (high < 0 || x < xs[0] || x > xs[high]) return null;
  while (high - low > 1) { const middle = (low + high) >> 1; if (xs[middle] <= x) low = middle; else high = middle; }
  const width = xs[high] - xs[low];
  if (steps && x > xs[low]) return ys[high];
  return width > 0 ? ys[low] + (ys[high] - ys[low]) * (x - xs[low]) / width : Math.max(ys[low], ys[high]);
}
function binAt(edges, x) {
  for (let i = 0; i + 1 < edges.length; i++) if (x < edges[i + 1] || i + 2 === edges.length) return i;
  return 0;
}
function showAt(figure, data, share) {
  const x = data.x[0] + (data.x[1] - data.x[0]) * share;
  const outputs = all("output", figure), readout = figure.querySelector(".readout");
  const bin = data.bins ? binAt(data.bins, x) : -1;
  data.series.forEach(([xs, ys], i) => {
    const y = data.bins ? ys[bin] : lineAt(xs, ys, x, data.steps);
    const pixels = () => y.toLocaleString("en").replaceAll(",", " ") + " px";
    outputs[i].value = y === null ? "–" : data.bins ? pixels() : (100 * y).toFixed(1) + " %";
  });
  const number = (value) => data.bins ? Number(value.toPrecision(4)) : (100 * value).toFixed(1) + " %";
  readout.textContent = data.bins ? `${data.label} ${number(data.bins[bin])} to ${number(data.bins[bin + 1])}`
    : `At ${data.label} ${number(x)}: ${data.value}`;
  const cursor = figure.querySelector(".cursor"), at = data.px[0] + (data.px[1] - data.px[0]) * share;
  cursor.setAttribute("x1", at); cursor.setAttribute("x2", at); cursor.style.visibility = "visible";
}
function readable(figure) {
  const data = JSON.parse(figure.dataset.chart), svg = figure.querySelector("svg.plot");
  const outputs = all("output", figure), rest = outputs.map((output) => output.value);
  const readout = figure.querySelector(".readout"), hint = readout.textContent;
  let share = 0.5;
  const move = (event) => {
    const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
    share = Math.min(1, Math.max(0, (x - data.px[0]) / (data.px[1] - data.px[0])));
    showAt(figure, data, share);
  };
  const leave = () => {
    outputs.forEach((output, i) => { output.value = rest[i]; });
    readout.textContent = hint; figure.querySelector(".cursor").style.visibility = "hidden";
  };
  svg.addEventListener("pointermove", move);
  svg.addEventListener("pointerdown", move);
  svg.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") leave(); });
  svg.addEventListener("blur", leave);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -0.02, ArrowRight: 0.02 }[event.key];
    if (step === undefined) return;
    share = Math.min(1, Math.max(0, share + step)); showAt(figure, data, share); event.preventDefault();
  });
  all(".legend button", figure).forEach((button, i) => button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", shown);
    all(`[data-series="${i}"]`, svg).forEach((mark) => { mark.style.display = shown ? "" : "none"; });
  }));
}
all("figure[data-chart]").forEach(readable);

// --- frames: sort by a header, filter by name, show a few first ------------------------------------------------------
function frameTable(box) {
  const table = box.querySelector("table"), body = table.tBodies[0], limit = Number(box.dataset.limit);
  const more = box.querySelector(".more"), input = box.querySelector("input"), found = box.querySelector(".found");
  let everything = false;
  const value = (row, column) => row.cells[column].dataset.v;
  const draw = () => {
    const wanted = input.value.trim().toLowerCase(), rows = [...body.rows];
    const matches = rows.filter((row) => value(row, Number(box.dataset.name)).toLowerCase().includes(wanted));
    const shown = new Set(everything || wanted ? matches : matches.slice(0, limit));
    rows.forEach((row) => { row.hidden = !shown.has(row); });
    found.textContent = `${shown.size} of ${rows.length} frames shown`;
    more.hidden = shown.size === matches.length;
    more.textContent = `Show all ${matches.length} frames`;
  };
  const sort = (header) => {
    const column = header.cellIndex, was = header.getAttribute("aria-sort");
    const order = was ? (was === "ascending" ? "descending" : "ascending") : header.dataset.first;
    const sign = order === "ascending" ? 1 : -1, numeric = header.dataset.kind === "number";
    const compare = (a, b) => {
      const x = value(a, column), y = value(b, column);
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
      return sign * (numeric ? x - y : x.localeCompare(y, "en", { numeric: true }));
    };
    all("[aria-sort]", table).forEach((other) => other.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", order);
    body.append(...[...body.rows].sort(compare));
    draw();
  };
  all("thead button", table).forEach((button) => button.addEventListener("click", () => sort(button.parentElement)));
  input.addEventListener("input", draw);
  more.addEventListener("click", () => { everything = true; draw(); });
  box.querySelector(".tools").hidden = false;
  draw();
}
all(".frame-box").forEach(frameTable);

// --- overlays: one at a time, large, in the order of the table -------------------------------------------------------
const viewer = document.getElementById("viewer");
let thumbs = [], current = 0;
function view(index) {
  current = (index + thumbs.length) % thumbs.length;
  const picture = thumbs[current].querySelector("img"), large = viewer.querySelector("img");
  large.src = picture.src; large.alt = picture.alt;
  document.getElementById("viewer-caption").textContent = picture.alt;
}
all(".thumb").forEach((thumb) => thumb.addEventListener("click", () => {
  thumbs = all("tbody tr:not([hidden]) .thumb", thumb.closest("table"));
  view(thumbs.indexOf(thumb));
  viewer.showModal();
}));
all("[data-step]", viewer).forEach((button) =>
  button.addEventListener("click", () => view(current + Number(button.dataset.step))));
viewer.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step) view(current + step);
});
viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });

// --- paper: what is folded away is printed too -----------------------------------------------------------------------
let folded = [];
addEventListener("beforeprint", () => {
  folded = all("details:not([open])"); folded.forEach((part) => { part.open = true; });
});
addEventListener("afterprint", () => folded.forEach((part) => { part.open = false; }));
