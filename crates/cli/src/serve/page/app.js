// Starts the page: tabs, theme, the model in the header, the key.

import { KEY_NEEDED, ask, hasKey, useKey } from "./api.js";
import { byId, job, say } from "./dom.js";
import "./chat.js";
import "./texts.js";
import "./compress.js";
import "./live.js";

const tabs = [...document.querySelectorAll("[role=tab]")];

function open(tab) {
  for (const other of tabs) {
    const isOpen = other === tab;
    other.setAttribute("aria-selected", isOpen);
    other.tabIndex = isOpen ? 0 : -1;
    byId(other.getAttribute("aria-controls")).hidden = !isOpen;
  }
  history.replaceState(null, "", `#${tab.id.slice("tab-".length)}`);
}

function openFromAddress() {
  const tab = tabs.find((tab) => `#${tab.id.slice("tab-".length)}` === location.hash);
  if (tab) open(tab);
}

for (const [index, tab] of tabs.entries()) {
  tab.addEventListener("click", () => open(tab));
  tab.addEventListener("keydown", (event) => {
    const last = tabs.length - 1;
    const to = { ArrowRight: index === last ? 0 : index + 1, ArrowLeft: index === 0 ? last : index - 1, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    open(tabs[to]);
    tabs[to].focus();
  });
}
addEventListener("hashchange", openFromAddress);
openFromAddress();

const theme = byId("theme");
theme.value = document.documentElement.dataset.theme ?? "system";
theme.addEventListener("change", () => {
  document.documentElement.dataset.theme = theme.value;
  localStorage.setItem("lapidary-theme", theme.value);
});

document.addEventListener(KEY_NEEDED, () => {
  byId("key").hidden = false;
  if (hasKey()) say(byId("key-status"), "The server does not accept this key.", true);
  byId("key-value").focus();
});

job(byId("key"), byId("key-status"), async (signal) => {
  useKey(byId("key-value").value.trim());
  // The cheapest request that asks for the key.
  await ask("tokenizer_info", { signal });
  byId("key").hidden = true;
  byId("key-value").value = "";
  tabs.find((tab) => tab.tabIndex === 0).focus();
});

async function showModel() {
  const [model] = (await (await ask("v1/models")).json()).data;
  byId("model-name").textContent = model.id;
  byId("model-short").textContent = model.fingerprint.slice(0, 12);
  byId("model-fingerprint").textContent = model.fingerprint;
  byId("model-longest").textContent = `${model.max_model_len.toLocaleString()} tokens`;
  document.title = `${model.id} · Lapidary`;
}

showModel().catch((error) => say(byId("model-status"), error.message, true));
