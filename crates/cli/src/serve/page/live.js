// What the server does now, and did in the last two minutes.

import { ask } from "./api.js";
import { byId, drawing, element, figure, say } from "./dom.js";

const SECONDS = 120;
/** Height of a line's picture, in its own units. */
const HEIGHT = 30;
/** Between two answers that are further apart, nothing is known and nothing drawn. */
const GAP_SECONDS = 4;

const rounded = (value) => value.toLocaleString(undefined, { maximumFractionDigits: 1 });

const figures = [
  // Conversations; those that wait do so for pages.
  { name: "Running", read: (health) => health.running },
  { name: "Waiting", read: (health) => health.waiting },
  { name: "Texts to embed", read: (health) => health.texts },
  { name: "Tokens a second", read: (health) => health.tokens_per_second },
  { name: "KV pages in use", read: (health) => health.kv_pages.held, of: (health) => health.kv_pages.all },
];

const [panel, status] = ["panel-live", "live-status"].map(byId);
let isAsking = false;

for (const one of figures) {
  one.value = element("span", "–");
  one.known = [];
  one.picture = drawing("svg", { viewBox: `0 0 ${SECONDS} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
  one.picture.setAttribute("aria-label", `${one.name}: nothing known yet`);
  one.most = element("span", "", "hint");
  figure(byId("live-figures"), one.name).append(one.value, one.picture, one.most);
}

function take(one, health, now) {
  const value = one.read(health);
  if (value === undefined) return;
  one.known = [...one.known.filter(({ at }) => now - at < SECONDS), { at: now, value }];
  const of = one.of?.(health);
  one.value.textContent = of ? `${rounded(value)} of ${rounded(of)}` : rounded(value);
  draw(one, now);
}

function draw(one, now) {
  const most = Math.max(...one.known.map(({ value }) => value));
  const runs = [];
  for (const [i, { at, value }] of one.known.entries()) {
    const point = `${(SECONDS - (now - at)).toFixed(1)},${(HEIGHT - 2 - (value / (most || 1)) * (HEIGHT - 4)).toFixed(1)}`;
    if (i === 0 || at - one.known[i - 1].at > GAP_SECONDS) runs.push([]);
    runs.at(-1).push(point);
  }
  one.picture.replaceChildren(...runs.map((points) => drawing("polyline", { points: points.join(" ") })));
  one.picture.setAttribute("aria-label", `${one.name}, last two minutes`);
  one.most.textContent = `at most ${rounded(most)}`;
}

async function look() {
  if (panel.hidden || document.visibilityState !== "visible" || isAsking) return;
  isAsking = true;
  try {
    const health = await (await ask("health")).json();
    for (const one of figures) take(one, health, performance.now() / 1000);
    say(status, "");
  } catch (error) {
    say(status, error.message, true);
  }
  isAsking = false;
}

setInterval(look, 1000);
new MutationObserver(look).observe(panel, { attributeFilter: ["hidden"] });
look();
