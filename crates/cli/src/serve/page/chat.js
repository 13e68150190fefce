// A conversation with the model.

import { converse } from "./api.js";
import { byId, element, job, numberIn, say } from "./dom.js";

const [form, log, field, status] = ["chat-form", "chat-log", "chat-text", "chat-status"].map(byId);
const empty = log.firstElementChild;
let messages = [];

function turn(who, text) {
  const said = element("p", text, "said");
  const box = element("div", "", who === "You" ? "turn own" : "turn");
  box.append(element("p", who, "who"), said);
  empty.remove();
  log.append(box);
  return { box, said };
}

/** Follows the reply, unless the reader has scrolled up. */
function follow(change) {
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  change();
  if (atEnd) log.scrollTop = log.scrollHeight;
}

const chat = job(form, status, async (signal) => {
  const content = field.value.trim();
  if (!content) return;
  const own = messages;
  const question = turn("You", content);
  const answer = turn(byId("model-name").textContent, "");
  field.value = "";
  log.scrollTop = log.scrollHeight;
  // A screen reader is told the reply once, when it is whole.
  log.setAttribute("aria-busy", "true");
  answer.box.classList.add("coming");
  let isAnswered = false;
  try {
    const request = {
      messages: [...own, { role: "user", content }],
      max_tokens: numberIn(byId("chat-tokens")),
      temperature: numberIn(byId("chat-temperature")),
    };
    const show = (text) => follow(() => (answer.said.textContent = text));
    const reply = await converse(request, signal, show);
    follow(() => answer.box.append(element("p", reply.about, "hint")));
    isAnswered = !signal.aborted || reply.text !== "";
  } finally {
    const text = answer.said.textContent;
    if (isAnswered || text) {
      own.push({ role: "user", content }, { role: "assistant", content: text });
    } else {
      // What was not answered goes back to where it can be sent again.
      question.box.remove();
      answer.box.remove();
      if (own === messages) field.value ||= content;
      if (!log.childElementCount) log.append(empty);
    }
    answer.box.classList.remove("coming");
    log.removeAttribute("aria-busy");
  }
});

field.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});

byId("chat-clear").addEventListener("click", () => {
  chat.stop();
  messages = [];
  log.replaceChildren(empty);
  say(status, "");
  field.focus();
});
