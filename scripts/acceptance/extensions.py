"""What `lapidary serve` has beside the interfaces of others: compressed texts in messages, vectors of what was said, long texts,
chunks.

usage: extensions.py [LAPIDARY] [SERVE FLAG]...

LAPIDARY (target/release/lapidary) is started on ports of its own with the model that comes with it. Prints what it measures: the
time to the first token behind a document in full and compressed, what vectors cost beside a reply, and how often a sentence
finds the long document that it stands in, where the document is cut and where it is compressed.
"""
import asyncio, gzip, statistics, sys, time

from common import ROOT, check, started
from loopback import ask, opened

DOCUMENTS, SENTENCES, K = 24, 56, 10


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b))


def post(address, path, body):
    status, _, reply = asyncio.run(ask(address, path, body))
    if status != 200:
        raise SystemExit(f"{path}: expected 200, found {status} {reply}")
    return reply


def vector(address, text, **more):
    return post(address, "/v1/embeddings", {"input": text, **more})["data"][0]["embedding"]


async def streamed(address, content, **more):
    """(seconds to the first token, seconds to the end, tokens, the last event with vectors) of a greedy reply."""
    body = {"messages": [{"role": "user", "content": content}], "temperature": 0, "stream": True, "max_tokens": 48, **more}
    began = time.monotonic()
    answer = await opened(address, "/v1/chat/completions", body)
    await answer.head()
    times, vectors, end = [], None, began
    async for at, event in answer.events():
        end = at
        if event and event.get("embeddings"):
            vectors = event["embeddings"]
        elif event and event["choices"] and event["choices"][0]["delta"].get("content"):
            times.append(at)
    answer.close()
    return times[0] - began, end - began, times, vectors


def compressed(address, lines):
    """A document of about 500 tokens, asked about in full and compressed; each question is new, so that no page is found."""
    document = " ".join(lines[:18])
    made = post(address, "/v1/compress", {"input": document})
    check("the same pass gives the text's vector", cosine(made["embedding"], vector(address, document)) > 1 - 1e-5)
    full, short = [], []
    for number in range(5):
        question = f" {number}. What is this about?"
        full.append(asyncio.run(streamed(address, f"{number} {document}{question}"))[0])
        parts = [{"type": "text", "text": f"{number} "}, {"type": "compressed", "id": made["id"]},
                 {"type": "text", "text": question}]
        short.append(asyncio.run(streamed(address, parts))[0])
    full, short = statistics.median(full), statistics.median(short)
    tokens = (made["num_text_tokens"], made["num_special_tokens"])
    print(f"        first token behind {tokens[0]} tokens {full * 1e3:.0f} ms, behind {tokens[1]} compressed {short * 1e3:.0f} ms")
    check("a compressed document is answered sooner", short < full)


def beside(address, lines):
    """What the vectors of what was said cost, in steps of decoding."""
    spent = {None: [], "prompt": [], "completion": []}
    steps = []
    for number, line in enumerate(lines[:8]):
        for wanted, seconds in spent.items():
            more = {"return_embedding": wanted} if wanted else {}
            _, whole, times, vectors = asyncio.run(streamed(address, f"{number} {wanted} Go on: {line}", **more))
            seconds.append(whole / len(times))
            steps.extend(b - a for a, b in zip(times, times[1:]))
    step = statistics.median(steps)
    plain, *others = (statistics.median(seconds) * 48 / step for seconds in spent.values())
    for wanted, other in zip(("prompt", "completion"), others):
        print(f"        the vector of the {wanted} takes {other - plain:.1f} steps of decoding more, of {plain:.0f}")
        check(f"fewer than k = {K} steps", other - plain < K)
    reply = post(address, "/v1/chat/completions", {"messages": [{"role": "user", "content": lines[0]}], "max_tokens": 24,
                                                   "temperature": 0, "return_embedding": "both"})
    said = {"prompt": lines[0], "completion": reply["choices"][0]["message"]["content"]}
    for what, text in said.items():
        check(f"the vector of the {what} is that of its text",
              cosine(reply["embeddings"][what], vector(address, text)) > 1 - 1e-5)


def long_documents(address, lines):
    """How often a sentence finds the document that it stands in."""
    documents = [lines[i * SENTENCES:][:SENTENCES] for i in range(DOCUMENTS)]
    found = {}
    for overflow in ("truncate", "compress"):
        begun = time.monotonic()
        vectors = [vector(address, " ".join(document), overflow=overflow) for document in documents]
        for where, at in (("beginning", 2), ("middle", SENTENCES // 2), ("end", SENTENCES - 3)):
            hits = 0
            for number, document in enumerate(documents):
                asked = vector(address, document[at])
                hits += max(range(DOCUMENTS), key=lambda i: cosine(asked, vectors[i])) == number
            found[overflow, where] = hits
            print(f"        {overflow}, a sentence at the {where}: {hits} of {DOCUMENTS} find their document")
        print(f"        {(time.monotonic() - begun) / DOCUMENTS:.1f} s a document and its questions")
    check("what is compressed is found at the end more often than what is cut",
          found["compress", "end"] > found["truncate", "end"])


def chunks(address, lines):
    text = "\r\n".join(lines[:60]) + " 猫は寝る。😀"
    reply = post(address, "/v1/chunk", {"input": text, "max_tokens": 64, "embed": True})["chunks"]
    check("chunks rebuild the text", "".join(one["text"] for one in reply) == text)
    raw = text.encode()
    check("offsets are those of bytes", all(raw[one["start"]:one["end"]].decode() == one["text"] for one in reply))
    check("no chunk is too long", all(one["num_tokens"] <= 64 for one in reply))
    check("a chunk's vector is that of its text", cosine(reply[3]["embedding"], vector(address, reply[3]["text"])) > 1 - 1e-5)


def main():
    if "--help" in sys.argv:
        raise SystemExit(print(__doc__.strip()))
    with gzip.open(ROOT / "data/wiki_sentences.txt.gz", "rt", encoding="utf8") as file:
        lines = file.read().splitlines()
    with started(sys.argv[1:]) as server:
        compressed(server.address, lines)
        beside(server.address, lines[100:])
        chunks(server.address, lines)
    # A short longest row, so that documents need not be long to be too long.
    with started(sys.argv[1:], "--kv-tokens", "1024") as server:
        long_documents(server.address, lines[200:])


main()
