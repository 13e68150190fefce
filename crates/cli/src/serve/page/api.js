// Requests to the server: the key, errors in plain words, streamed replies.

const KEY = "lapidary-key";

/** Dispatched on the document when the server has refused for want of a key. */
export const KEY_NEEDED = "lapidary-key-needed";

export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

/** The response, if all is well; paths are relative, so that the page works below a path of a proxy. */
export async function ask(path, { body, signal } = {}) {
  const headers = {};
  if (body) headers["Content-Type"] = "application/json";
  if (hasKey()) headers.Authorization = `Bearer ${sessionStorage.getItem(KEY)}`;
  const request = { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal, cache: "no-store" };
  const response = await fetch(path, request).catch((error) => {
    throw error.name === "AbortError" ? error : new Error("The server does not answer. Does it still run?");
  });
  if (response.ok) return response;
  const message = await reason(response);
  if (response.status === 401) document.dispatchEvent(new Event(KEY_NEEDED));
  throw new Error(message);
}

async function reason(response) {
  if (response.status === 401) {
    return hasKey() ? "The server does not accept this key." : "The server asks for a key; there is a field for it at the top.";
  }
  const text = await response.text();
  try {
    return `The server says: ${JSON.parse(text).error.message}`;
  } catch {
    return `The server answers ${response.status} ${response.statusText}: ${text.slice(0, 200)}`;
  }
}

/** The JSON objects of a stream of server-sent events, up to [DONE]. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("The reply broke off. Does the server still run?");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines.filter((line) => line.startsWith("data:"))) {
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

/**
 * Streams a reply; `show` gets all of it so far. A stop is no error: what there is is returned.
 * Returns the text and what is to be said about it.
 */
export async function converse(request, signal, show) {
  const begun = performance.now();
  const reply = { text: "", pieces: 0, first: 0, last: 0, usage: null, finish: "" };
  try {
    const body = { ...request, stream: true, stream_options: { include_usage: true } };
    for await (const chunk of events(await ask("v1/chat/completions", { body, signal }))) {
      if (chunk.error) throw new Error(`The server says: ${chunk.error.message}`);
      reply.usage = chunk.usage ?? reply.usage;
      reply.finish = chunk.choices[0]?.finish_reason ?? reply.finish;
      const piece = chunk.choices[0]?.delta?.content;
      if (!piece) continue;
      reply.last = (performance.now() - begun) / 1000;
      if (reply.pieces === 0) reply.first = reply.last;
      reply.pieces += 1;
      reply.text += piece;
      show(reply.text);
    }
  } catch (error) {
    if (error.name !== "AbortError") throw error;
    reply.finish = "stopped";
  }
  return { text: reply.text, about: about(reply) };
}

function about({ pieces, first, last, usage, finish }) {
  // A reply that was stopped brings no usage; a piece is a token, but for characters of several.
  const tokens = usage?.completion_tokens ?? pieces;
  const told = [`${tokens} ${tokens === 1 ? "token" : "tokens"}`];
  if (pieces > 0) told.push(`first after ${first.toFixed(2)} s`);
  if (tokens > 1 && last > first) told.push(`${((tokens - 1) / (last - first)).toFixed(1)} tokens/s`);
  if (usage) {
    const known = usage.prompt_tokens_details?.cached_tokens;
    told.push(`${usage.prompt_tokens} read${known ? `, ${known} of them known from before` : ""}`);
  }
  if (finish === "length") told.push("cut off: no more tokens allowed");
  if (finish === "stopped") told.push("stopped");
  return told.join(" · ");
}
