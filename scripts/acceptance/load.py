"""Clients that chat and embed together against `lapidary serve`, for minutes: every answer is the one computed alone.

usage: load.py [--minutes 10] [--clients 64] [--pool 48] [--compare-chat] [--out FILE.md] [LAPIDARY] [SERVE FLAG]...

LAPIDARY (target/release/lapidary) is started on a port of its own with the model that comes with it and --weights bf16, by
which what a request gets does not depend on what else is computed with it. First each request of the pool is made alone.
Then half the clients chat (streams, greedy) and half embed. A vector must be within 1e-5 (cosine) of that computed alone, a
chat have the same pieces. 429 with Retry-After is waited for; all else is an error. Resident memory is read each second: the
mean of the last fifth of the time must be within 2 % of that of the second. With --compare-chat half the clients chat on a
server of their own first, and the server that also embeds may take 5 % more memory.
"""
import argparse, asyncio, collections, gzip, math, random, time
from pathlib import Path

from common import ROOT, check, started
from loopback import ask, opened, percentile, resident_mib

LIMIT = 300  # Seconds for a request.


class Pool:
    def __init__(self, size):
        with gzip.open(ROOT / "data/wiki_sentences.txt.gz", "rt", encoding="utf8") as file:
            lines = file.read().splitlines()
        chance = random.Random(1)
        texts = lambda most: chance.sample(lines, chance.randint(1, most))
        asked = ["Say this in other words: ", "What is this about? ", "Go on: ", "Ask a question about this: "]
        self.chats = [{"messages": [{"role": "user", "content": chance.choice(asked) + " ".join(texts(8))}], "temperature": 0,
                       "max_tokens": chance.randint(8, 48), "stream": True} for _ in range(size)]
        self.embeds = [{"input": texts(8)} for _ in range(size)]


class Found:
    """What clients saw."""

    def __init__(self):
        self.first, self.between, self.embed = [], [], []
        self.tokens = self.texts = self.chats = self.waited = 0
        self.errors, self.worst, self.other_chats, self.seconds = collections.Counter(), 0.0, 0, 0.0


async def accepted(address, path, body, found):
    """An answer with status 200, its start and its head read; None when there is no such answer."""
    while True:
        start = time.monotonic()
        answer = await opened(address, path, body)
        await answer.head()
        if answer.status == 200:
            return start, answer
        told = await answer.json()
        answer.close()
        if answer.status != 429 or "retry-after" not in answer.headers:
            found.errors[f"{path} {answer.status} {told['error']['message'][:80]}"] += 1
            return None
        found.waited += 1
        await asyncio.sleep(float(answer.headers["retry-after"]))


async def chat(address, body, found):
    """The pieces of text, with how it ended."""
    taken = await accepted(address, "/v1/chat/completions", body, found)
    if taken is None:
        return None
    (start, answer), pieces, last = taken, [], None
    async for at, event in answer.events():
        if event is None:
            answer.close()
            found.chats += 1
            return pieces
        if "error" in event:
            found.errors[f"in a stream: {event['error']['message'][:80]}"] += 1
            break
        choice = event["choices"][0]
        if piece := choice["delta"].get("content"):
            (found.first if last is None else found.between).append(at - (last or start))
            last = at
            pieces.append(piece)
            found.tokens += 1
        elif choice["finish_reason"]:
            pieces.append(f"<{choice['finish_reason']}>")
    else:
        found.errors["a stream without [DONE]"] += 1
    answer.close()
    return None


async def embed(address, body, found):
    taken = await accepted(address, "/v1/embeddings", body, found)
    if taken is None:
        return None
    start, answer = taken
    data = (await answer.json())["data"]
    answer.close()
    found.embed.append(time.monotonic() - start)
    found.texts += len(data)
    return [one["embedding"] for one in data]


def distance(a, b):
    dot = sum(x * y for x, y in zip(a, b))
    return 1 - dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


async def client(number, address, pool, alone, found, until):
    """Even numbers chat, odd ones embed."""
    chance = random.Random(number)
    chats = number % 2 == 0
    while time.monotonic() < until:
        i = chance.randrange(len(pool.chats))
        try:
            if chats:
                pieces = await asyncio.wait_for(chat(address, pool.chats[i], found), LIMIT)
                found.other_chats += pieces is not None and pieces != alone[0][i]
            else:
                vectors = await asyncio.wait_for(embed(address, pool.embeds[i], found), LIMIT)
                if vectors is not None:
                    found.worst = max(found.worst, *map(distance, vectors, alone[1][i]))
        except (OSError, EOFError, ValueError, TimeoutError, asyncio.TimeoutError) as error:
            found.errors[repr(error)[:100]] += 1
            await asyncio.sleep(1)


async def memory(pid, samples):
    while True:
        samples.append(resident_mib(pid))
        await asyncio.sleep(1)


async def phase(server, pool, options, step):
    """Loads a server: `step` 1 is all clients, 2 those that chat. Returns what was found and the memory by second."""
    found, samples, nobody = Found(), [], Found()
    texts = pool.embeds if step == 1 else []
    alone = ([await chat(server.address, body, nobody) for body in pool.chats],
             [await embed(server.address, body, nobody) for body in texts])
    check(f"alone: {len(pool.chats)} chats and {len(texts)} lists of texts, {dict(nobody.errors)}", not nobody.errors)
    watch = asyncio.create_task(memory(server.pid, samples))
    start = time.monotonic()
    until = start + 60 * options.minutes
    numbers = range(0, options.clients, step)
    await asyncio.gather(*(client(number, server.address, pool, alone, found, until) for number in numbers))
    watch.cancel()
    found.seconds = time.monotonic() - start
    _, _, health = await ask(server.address, "/health")
    check(f"afterwards nothing runs: {health}", health["running"] == health["waiting"] == health["texts"] == 0)
    return found, samples


def table(found, samples):
    rows = []
    for what, values in [("time to first token", found.first), ("time between tokens", found.between),
                         ("a list of texts embedded", found.embed)]:
        if values:
            p50, p95, p99 = (1000 * percentile(values, share) for share in (0.5, 0.95, 0.99))
            rows.append((f"{what}, ms: p50 / p95 / p99", f"{p50:.0f} / {p95:.0f} / {p99:.0f}"))
    rows.append(("chats / tokens / texts", f"{found.chats} / {found.tokens} / {found.texts}"))
    rows.append(("tokens / texts a second", f"{found.tokens / found.seconds:.1f} / {found.texts / found.seconds:.1f}"))
    rows.append(("429 with Retry-After, waited for", found.waited))
    rows.append(("errors", sum(found.errors.values())))
    rows.append(("chats other than alone", found.other_chats))
    rows.append(("largest 1 - cosine to the vector alone", f"{found.worst:.1e}"))
    second, last = fifths(samples)
    rows.append(("resident MiB: second fifth / last fifth / peak", f"{second:.1f} / {last:.1f} / {max(samples):.1f}"))
    return "| measure | value |\n|---|---|\n" + "".join(f"| {what} | {value} |\n" for what, value in rows)


def fifths(samples):
    n = max(1, len(samples) // 5)
    mean = lambda part: sum(part) / max(1, len(part))
    return mean(samples[n:2 * n] or samples), mean(samples[-n:])


def run(options, flags, pool, step, title):
    # So few keys and values that all of their memory is in use from the first minutes on.
    with started(flags, "--weights", "bf16", "--kv-tokens", "8192") as server:
        found, samples = asyncio.run(phase(server, pool, options, step))
        text = f"{title}\n\n{table(found, samples)}"
        print(text, flush=True)
    for error, count in found.errors.most_common():
        print("       ", count, error)
    return text, found, samples


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS, allow_abbrev=False)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--pool", type=int, default=48)
    parser.add_argument("--compare-chat", action="store_true")
    parser.add_argument("--out", type=Path)
    options, flags = parser.parse_known_args()
    pool, texts = Pool(options.pool), []
    if options.compare_chat:
        text, _, chat_alone = run(options, flags, pool, 2, f"{options.clients // 2} clients that chat, {options.minutes} min")
        texts.append(text)
    text, found, samples = run(options, flags, pool, 1, f"{options.clients} clients, half of which embed, {options.minutes} min")
    texts.append(text)
    second, last = fifths(samples)
    if options.compare_chat:
        alone = fifths(chat_alone)[1]
        texts.append(f"Resident memory, last fifth: {last:.1f} MiB, {100 * (last / alone - 1):+.1f} % on chat alone.\n")
        print(texts[-1])
    if options.out:
        options.out.write_text("\n".join(texts))
    holds = [("no errors", not found.errors), ("every chat is that computed alone", found.other_chats == 0),
             ("every vector is that computed alone", found.worst < 1e-5),
             ("resident memory is flat", abs(last / second - 1) < 0.02)]
    if options.compare_chat:
        holds.append(("both take at most 5 % more memory than chat alone", last < 1.05 * alone))
    for what, right in holds:
        print("ok    " if right else "FAILED", what)
    raise SystemExit(not all(right for _, right in holds))


main()
