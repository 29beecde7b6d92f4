"use strict";
// Sorting, filtering, and the views of runs. Everything from the data becomes text, never markup.
const SVG = "http://www.w3.org/2000/svg";
const FACETS = ["init", "backbone", "task", "protocol"];
const PAGE_OF_RUNS = 300;
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  const { data = {}, ...others } = properties;
  Object.assign(made, others);
  Object.assign(made.dataset, data);
  made.append(...children);
  return made;
}

function drawing(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// -- Tables: sort by a column, best first; again: worst first; once more: the paper's order.

function sortable(table) {
  const entries = all("tbody.entry", table);
  const foot = table.querySelector("tfoot");
  const heads = all("thead tr:last-child th", table);
  const order = (sorted) => { for (const entry of sorted) table.insertBefore(entry, foot); };
  for (const head of heads) {
    head.querySelector("button").addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      for (const other of heads) other.removeAttribute("aria-sort");
      const column = head.dataset.col;
      const falling = head.dataset.best === "high" ? "descending" : "ascending";
      const rising = falling === "descending" ? "ascending" : "descending";
      const next = column === undefined ? null : { [falling]: rising, [rising]: null }[before] ?? (before ? null : falling);
      if (!next) return order(entries);
      head.setAttribute("aria-sort", next);
      const sign = next === "descending" ? -1 : 1;
      const value = (entry) => parseFloat(entry.querySelector(`.ours [data-col="${column}"]`).dataset.value);
      const rank = (entry) => (Number.isNaN(value(entry)) ? Infinity : sign * value(entry));
      order([...entries].sort((a, b) => (rank(a) === rank(b) ? 0 : rank(a) - rank(b))));
    });
  }
}

// -- Filters.

const form = document.querySelector(".filters");
const wanted = () => Object.fromEntries(FACETS.map((name) => [name, form.elements[name].value]).filter(([, value]) => value));
const passes = (found, filter) => Object.entries(filter).every(([name, value]) => found[name] === undefined || found[name] === value);

function filterTable(table, filter) {
  const heads = all("thead th[data-col]", table);
  const shown = heads.map((head) => passes(head.dataset, filter));
  for (const cell of all("[data-col]", table)) cell.hidden = !shown[Number(cell.dataset.col)];
  let column = 0;
  for (const group of all(".groups th", table)) {
    const width = Number((group.dataset.width ??= group.colSpan));
    const left = shown.slice(column, column + width).filter(Boolean).length;
    group.hidden = left === 0;
    if (left) group.colSpan = left;
    column += width;
  }
  return shown.some(Boolean);
}

function applyFilters() {
  const filter = wanted();
  for (const found of all("main [data-init], main .panel, main .card, main .pictures figure")) {
    found.toggleAttribute("hidden", !passes(found.dataset, filter));
  }
  for (const result of all(".result")) {
    const columns = filterTable(result.querySelector("table"), filter);
    result.hidden = !columns || !all("tbody.entry", result).some((entry) => !entry.hidden);
  }
  showRuns();
  const tables = all(".result").filter((result) => !result.hidden).length;
  form.querySelector("output").textContent = Object.keys(filter).length ? `${tables} tables, ${chosen().length} runs` : "";
}

// -- Runs.

let runs = [];
let limit = PAGE_OF_RUNS;
const list = document.querySelector("#runs .list");
const search = document.querySelector("#runs input");

async function unpack() {
  const bytes = Uint8Array.from(atob(document.getElementById("data").textContent), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return JSON.parse(await new Response(stream).text());
}

function chosen() {
  const filter = wanted();
  const words = (search?.value ?? "").toLowerCase().split(/\s+/).filter(Boolean);
  return runs.filter((run) => {
    const facets = { init: run.init, backbone: run.backbone, task: run.task, protocol: run.recipe };
    const text = `${run.id} ${run.task} ${run.dataset} ${run.backbone} ${run.init} ${run.recipe} seed ${run.seed} ${run.status}`.toLowerCase();
    return passes(facets, filter) && words.every((word) => text.includes(word));
  });
}

function showRuns() {
  if (!list) return;
  const found = chosen();
  const open = new Map(all("details", list).map((details) => [details.id, details]));
  list.replaceChildren(...found.slice(0, limit).map((run) => open.get(`run-${run.id}`) ?? summary(run)));
  if (found.length > limit) {
    const more = element("button", { type: "button", textContent: `Show ${found.length - limit} more` });
    more.addEventListener("click", () => { limit = Infinity; showRuns(); });
    list.append(more);
  }
}

function summary(run) {
  const scores = run.metrics.slice(0, 8).map(([name, value]) =>
    element("span", {}, `${name} `, element("b", { textContent: typeof value === "number" ? value.toFixed(2) : value })));
  if (run.status !== "ok") scores.unshift(element("span", { className: "state", textContent: run.status }));
  const details = element("details", { className: "run", id: `run-${run.id}` },
    element("summary", {},
      element("span", { className: "what" }, element("b", { textContent: run.task }), ` ${run.dataset} `, element("small", { textContent: run.recipe.split("/").pop() })),
      element("span", { className: "init" }, `${run.init} `, element("small", { textContent: `seed ${run.seed}` })),
      element("span", { className: "scores" }, ...scores),
      element("span", { className: "time", textContent: run.seconds })));
  details.addEventListener("toggle", () => {
    if (details.open && details.children.length === 1) details.append(inside(run));
  });
  return details;
}

function pairs(rows) {
  return element("dl", {}, ...rows.flatMap(([name, text]) =>
    [element("dt", { textContent: name }), element("dd", {}, text)]));
}

function block(title, content) {
  return element("div", {}, element("h4", { textContent: title }), content);
}

function inside(run) {
  const made = element("div", { className: "inside" }, element("p", { className: "label" }, `${run.backbone}, ${run.recipe}${run.budget ? `, ${run.budget}` : ""} `, element("code", { textContent: run.id })));
  if (run.error) made.append(element("pre", { className: "error", textContent: run.error }));
  made.append(...run.curves.map(curve));
  const pictures = run.pictures.map((key) => document.getElementById(`picture-${key}`)).filter(Boolean);
  if (pictures.length) {
    made.append(element("div", { className: "pictures" }, ...pictures.map((figure) => {
      const image = figure.querySelector("img");
      return element("figure", {}, element("img", { src: image.src, alt: image.alt, loading: "lazy" }), element("figcaption", { textContent: image.alt }));
    })));
  }
  const scores = run.metrics.map(([name, value, unit, higher]) => [name, `${value} ${unit}${higher ? "" : " (lower is better)"}`]);
  const from = run.from.map(([role, id, file, digest]) => [`${role} from`,
    id ? element("a", { href: `#run-${id}`, textContent: `run ${id}` }) : `${file} (SHA-256 ${digest})`]);
  const lists = element("div", { className: "lists" },
    block("Scores and cost", pairs([...scores, ...run.cost])),
    block("Provenance", pairs([...from, ...run.origin])),
    block("Effective recipe", pairs(run.settings)));
  if (run.load.length) lists.append(block("Load report", pairs(run.load)));
  if (run.groups.length) lists.append(block("Parameter groups", groups(run.groups)));
  if (run.facts) lists.append(block("Facts the task noted", element("pre", { textContent: run.facts })));
  made.append(lists);
  return made;
}

function groups(rows) {
  const line = (cells, name) => element("tr", {}, ...cells.map((text) => element(name, { textContent: text })));
  return element("table", { className: "groups-table" },
    element("thead", {}, line(["layer", "lr scale", "weight decay", "tensors"], "th")),
    element("tbody", {}, ...rows.map((row) => line(row, "td"))));
}

function curve(found) {
  const text = (x, y, anchor, content, name = "tick") => drawing("text", { class: name, x, y, "text-anchor": anchor }, content);
  const chart = drawing("svg", { viewBox: "0 0 560 190", role: "img", "aria-label": `Learning curve: ${found.name}, last value ${found.last}` },
    ...found.y_ticks.flatMap((tick) => [drawing("line", { class: "grid", x1: 52, x2: 548, y1: tick.at, y2: tick.at }), text(44, tick.at + 3.5, "end", tick.text)]),
    ...found.x_ticks.map((tick) => text(tick.at, 184, "middle", tick.text)));
  if (found.reference) chart.append(drawing("path", { class: "line published", d: found.reference }));
  chart.append(drawing("path", { class: "line", d: found.path }),
    drawing("circle", { class: "end", cx: found.end[0], cy: found.end[1], r: 3.5 }),
    text(found.end[0], found.end[1] - 8, "end", found.last, "last"));
  const title = `${found.name} over training steps${found.reference ? "; dashed: reference curve of the recipe" : ""}`;
  return element("figure", { className: "curve" }, element("figcaption", { textContent: title }), chart);
}

function openLinked() {
  const id = decodeURIComponent(location.hash.slice(1));
  if (!id.startsWith("run-")) return;
  if (!document.getElementById(id) && runs.some((run) => `run-${run.id}` === id)) {
    form.reset();
    if (search) search.value = "";
    limit = Infinity;
    applyFilters();
  }
  const details = document.getElementById(id);
  if (!details) return;
  details.open = true;
  details.scrollIntoView();
  details.querySelector("summary").focus({ preventScroll: true });
}

// -- Light and dark.

const THEMES = { auto: "", light: "light", dark: "dark" };

function remember(theme) {
  try { localStorage.setItem("mae-bench-theme", theme); } catch { /* a page from a file may have no storage */ }
}

function recall() {
  try { return localStorage.getItem("mae-bench-theme"); } catch { return null; }
}

function setTheme(theme) {
  document.documentElement.dataset.theme = THEMES[theme] ?? "";
  const button = form.querySelector(".theme");
  button.textContent = `Theme: ${theme}`;
  button.dataset.theme = theme;
}

// -- Print: tables that are wider than the paper are made smaller.

const PAPER_WIDTH = 1000;

function fitToPaper(fit) {
  for (const table of all(".result .scroll > table")) {
    table.style.zoom = "";
    const width = fit ? table.scrollWidth : 0;
    if (width > PAPER_WIDTH) table.style.zoom = PAPER_WIDTH / width;
  }
}

// -- Start.

form.hidden = false;
setTheme(recall() in THEMES ? recall() : "auto");
form.querySelector(".theme").addEventListener("click", (event) => {
  const names = Object.keys(THEMES);
  const next = names[(names.indexOf(event.target.dataset.theme) + 1) % names.length];
  setTheme(next);
  remember(next);
});
form.addEventListener("change", applyFilters);
form.addEventListener("reset", () => setTimeout(applyFilters));
form.addEventListener("submit", (event) => event.preventDefault());
search?.addEventListener("input", showRuns);
all(".result table").forEach((table) => table.tHead?.querySelector("[data-col]") && sortable(table));
addEventListener("hashchange", openLinked);
addEventListener("beforeprint", () => fitToPaper(true));
addEventListener("afterprint", () => fitToPaper(false));
unpack().then((found) => {
  runs = found;
  showRuns();
  openLinked();
  document.documentElement.dataset.ready = "yes";
});
