// Texts side by side: heat map, nearest, map.

import { ask } from "./api.js";
import { byId, drawing, element, job, say } from "./dom.js";
import { cosines, plane } from "./geometry.js";

/** More could not be read in the heat map. */
const MOST = 60;
/** Between a point and its label, and between lines, in pixels. */
const GAP = 9;
const LINE = 13;
/** Where a label may stand: to the right or left, so many lines below. */
const PLACES = [0, -0.7, 0.7, -1, 1].flatMap((lines) => [[1, lines], [-1, lines]]);

const status = byId("texts-status");
let drawn = null;

job(byId("texts-form"), status, async (signal) => {
  const texts = byId("texts-input").value.split("\n").map((line) => line.trim()).filter(Boolean);
  if (texts.length < 2 || texts.length > MOST) {
    throw new Error(`Between 2 and ${MOST} lines can be compared; here are ${texts.length}.`);
  }
  say(status, "Embedding…");
  const begun = performance.now();
  const response = await ask("v1/embeddings", { body: { input: texts, encoding_format: "float" }, signal });
  const { data, usage } = await response.json();
  const seconds = ((performance.now() - begun) / 1000).toFixed(2);
  const vectors = data.map((one) => one.embedding);
  const table = cosines(vectors);
  const nearest = table.map((row, i) => {
    const others = [...row.keys()].filter((j) => j !== i);
    return others.reduce((best, j) => (row[j] > row[best] ? j : best));
  });
  drawn = { texts, nearest, ...plane(vectors) };
  byId("texts-result").hidden = false;
  drawHeat(texts, table);
  listNearest(texts, table, nearest);
  drawMap();
  const a = [...nearest.keys()].reduce((best, i) => (table[i][nearest[i]] > table[best][nearest[best]] ? i : best));
  const pair = `Nearest of all: ${a + 1} and ${nearest[a] + 1} (${shown(table[a][nearest[a]])}).`;
  say(status, `${pair} ${texts.length} texts, ${usage.prompt_tokens} tokens, ${seconds} s.`);
});

const shown = (cosine) => (Math.abs(cosine) < 0.005 ? "0.00" : cosine.toFixed(2).replace("-", "−"));

const short = (text, most) => (text.length > most ? `${text.slice(0, most - 1).trimEnd()}…` : text);

function heading(scope, number, text) {
  const cell = element("th", `${number}`);
  cell.scope = scope;
  if (text) cell.append(element("span", ` ${text}`, "wide"));
  return cell;
}

function drawHeat(texts, table) {
  const heat = element("table");
  const head = element("tr");
  head.append(element("td"), ...texts.map((_, i) => heading("col", i + 1)));
  heat.append(head);
  for (const [i, row] of table.entries()) {
    const line = element("tr");
    line.append(heading("row", i + 1, short(texts[i], 36)));
    for (const [j, cosine] of row.entries()) {
      const cell = element("td", shown(cosine), cosine < 0 ? "apart" : "alike");
      cell.title = `${texts[i]}\n${texts[j]}`;
      cell.style.setProperty("--heat", `${Math.min(100, Math.abs(cosine) * 100).toFixed(0)}%`);
      line.append(cell);
    }
    heat.append(line);
  }
  byId("heat").replaceChildren(heat);
}

function listNearest(texts, table, nearest) {
  const lines = texts.map((text, i) => {
    const line = element("li", short(text, 160));
    const j = nearest[i];
    line.append(element("span", ` → ${j + 1}, ${short(texts[j], 60)} (${shown(table[i][j])})`, "hint"));
    return line;
  });
  byId("nearest").replaceChildren(...lines);
}

/** In pixels of its place, so that the words keep their size on a phone. */
function drawMap() {
  const place = byId("map");
  const width = place.clientWidth;
  if (!drawn || width === 0) return;
  const height = Math.min(480, Math.max(300, width * 0.55));
  const { points, nearest, texts } = drawn;
  const [toX, toY] = scales(points, width, height);
  const label = `Map of ${texts.length} texts; the list above says what is near to what`;
  const map = drawing("svg", { width, height, role: "img", "aria-label": label });
  place.replaceChildren(map);
  for (const [i, [x, y]] of points.entries()) {
    const [to, up] = points[nearest[i]];
    map.append(drawing("line", { x1: toX(x), y1: toY(y), x2: toX(to), y2: toY(up) }));
  }
  const taken = points.map(([x, y]) => ({ left: toX(x) - 6, right: toX(x) + 6, y: toY(y) }));
  for (const [i, [x, y]] of points.entries()) {
    const dot = drawing("circle", { cx: toX(x), cy: toY(y), r: 5 });
    dot.append(drawing("title", {}, texts[i]));
    map.append(dot);
  }
  for (const [i, [x, y]] of points.entries()) {
    const words = width < 560 ? "" : short(texts[i], 28);
    placeLabel(map, i + 1, words, { x: toX(x), y: toY(y), width }, taken);
  }
  const share = (drawn.share * 100).toFixed(0);
  byId("map-note").textContent =
    `The first two principal components; they hold ${share} % of the variance. A line leads from each text to its nearest.`;
}

/** One scale for both axes: distances are what the map is for. */
function scales(points, width, height) {
  const extent = [0, 1].map((axis) => {
    const values = points.map((point) => point[axis]);
    return { low: Math.min(...values), span: Math.max(...values) - Math.min(...values) };
  });
  const [x, y] = extent;
  const edge = 40;
  // Texts that are all the same differ by rounding; that is not to fill the map.
  const scale = Math.min((width - 2 * edge) / Math.max(x.span, 1e-4), (height - 2 * edge) / Math.max(y.span, 1e-4));
  const toX = (value) => width / 2 + (value - x.low - x.span / 2) * scale;
  const toY = (value) => height / 2 - (value - y.low - y.span / 2) * scale;
  return [toX, toY];
}

/** Beside its point, where nothing else is written; where all of it finds no room, the number alone. */
function placeLabel(map, number, words, { x, y, width }, taken) {
  const label = drawing("text", {});
  map.append(label);
  for (const text of [`${number} ${words}`.trim(), `${number}`]) {
    label.textContent = text;
    const length = label.getComputedTextLength();
    for (const [side, lines] of PLACES) {
      const left = side > 0 ? x + GAP : x - GAP - length;
      const box = { left, right: left + length, y: y + lines * LINE };
      const isInside = box.left >= 0 && box.right <= width;
      if (!isInside || taken.some((other) => meet(box, other))) continue;
      label.setAttribute("x", left);
      label.setAttribute("y", box.y + 4);
      taken.push(box);
      return;
    }
  }
  label.setAttribute("x", x + GAP);
  label.setAttribute("y", y + 4);
}

const meet = (a, b) => a.right >= b.left && b.right >= a.left && Math.abs(a.y - b.y) < LINE;

new ResizeObserver(drawMap).observe(byId("map"));
