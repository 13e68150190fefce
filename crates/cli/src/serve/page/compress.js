// A document as a few special tokens: what is saved, what comes back, what can be asked.

import { ask, converse } from "./api.js";
import { byId, element, figure, job, numberIn, say } from "./dom.js";
import { showMarked, tellingWords } from "./words.js";

let compressed = null;

const question = job(byId("ask-form"), byId("ask-status"), async (signal) => {
  const [text, place] = [byId("ask-text").value.trim(), byId("ask-reply")];
  const said = element("p", "", "said");
  place.replaceChildren(said);
  place.setAttribute("aria-busy", "true");
  try {
    const content = [{ type: "compressed", id: compressed.id }, { type: "text", text }];
    const request = { messages: [{ role: "user", content }] };
    const reply = await converse(request, signal, (text) => (said.textContent = text));
    place.append(element("p", reply.about, "hint"));
  } finally {
    place.removeAttribute("aria-busy");
  }
});

job(byId("compress-form"), byId("compress-status"), async (signal) => {
  const input = byId("compress-input").value.trim();
  if (!input) throw new Error("There is no document to compress.");
  question.stop();
  byId("compress-result").hidden = true;
  byId("ask-reply").replaceChildren();
  say(byId("ask-status"), "");
  say(byId("compress-status"), "Compressing…");
  const body = { input, recall: numberIn(byId("compress-recall")) };
  compressed = await (await ask("v1/compress", { body, signal })).json();
  showFigures(compressed);
  showRecall(input, compressed.recall ?? "");
  byId("compress-result").hidden = false;
  const { num_text_tokens: before, num_special_tokens: after } = compressed;
  say(byId("compress-status"), `${before.toLocaleString()} tokens became ${after.toLocaleString()}.`);
});

function showFigures({ num_text_tokens: before, num_special_tokens: after, num_kv_bytes: bytes }) {
  const list = byId("compress-figures");
  list.replaceChildren();
  figure(list, "Tokens", `${before.toLocaleString()} → ${after.toLocaleString()}`);
  figure(list, "Times fewer", (before / after).toFixed(1));
  figure(list, "Keys and values kept", `${Math.round(bytes / 1000).toLocaleString()} kB`);
}

function showRecall(original, recalled) {
  const wanted = tellingWords(original);
  const found = new Set([...tellingWords(recalled)].filter((word) => wanted.has(word)));
  showMarked(byId("compress-recalled"), recalled || "(nothing)", found);
  showMarked(byId("compress-original"), original, found);
  byId("compress-words").textContent =
    `Marked: ${found.size} of the original’s ${wanted.size} different words of four letters or more came back.`;
}
