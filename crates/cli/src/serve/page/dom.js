// Elements, and forms that do one thing at a time.

export const byId = (id) => document.getElementById(id);

/** Text goes in as text, never as HTML: it may come from a model. */
export function element(name, text = "", className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

export function drawing(name, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

export function say(place, message, isError = false) {
  place.textContent = message;
  place.classList.toggle("error", isError);
}

/** A figure with its name, for a list of class "figures"; returns the place of its value. */
export function figure(list, name, value = "") {
  const box = element("div");
  const place = element("dd", value);
  box.append(element("dt", name), place);
  list.append(box);
  return place;
}

/**
 * Does `work(signal)` when the form is sent; its button says "Stop" meanwhile, and stops it.
 * What goes wrong is said in `status`.
 */
export function job(form, status, work) {
  const button = form.querySelector("[type=submit]");
  const label = button.textContent;
  let running = null;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (running) return;
    running = new AbortController();
    button.textContent = "Stop";
    say(status, "");
    try {
      await work(running.signal);
    } catch (error) {
      const stopped = error.name === "AbortError";
      say(status, stopped ? "Stopped." : error.message, !stopped);
    }
    running = null;
    button.textContent = label;
  });
  // The click, not the sending: that would wait for fields that must be filled.
  button.addEventListener("click", (event) => {
    if (!running) return;
    event.preventDefault();
    running.abort();
  });
  return { stop: () => running?.abort() };
}

/** The number in a field, or nothing, so that the server's default holds. */
export function numberIn(field) {
  return field.value === "" ? undefined : Number(field.value);
}
