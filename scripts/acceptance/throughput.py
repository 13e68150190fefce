"""What chat and embeddings cost `lapidary serve`, both at once, and llama-cpp-python's server, each alone, in turns.

usage: throughput.py [--rounds 3] [--gguf FILE] [--out FILE.md] [LAPIDARY] [SERVE FLAG]...

LAPIDARY (target/release/lapidary) runs the model that comes with it; FILE is the GGUF file of its base model (SmolLM2's in the
cache). llama-cpp-python is built when it is installed into a virtual environment in target/acceptance/throughput: on a CPU with
AMX set CC=clang CXX=clang++, and CFLAGS and CXXFLAGS as scripts/bench_peers.py says. Four clients chat (greedy), four embed
lists of eight sentences; prompts are new in each round and the same for both. The machine must be quiet, because waiting
threads of llama.cpp spin. Costs are of the server's process: user and system seconds, and wall. The last line compares ours,
both at once, with what the other takes for as many tokens and texts.
"""
import argparse, asyncio, gzip, os, socket, statistics, subprocess, sys, time
from contextlib import contextmanager
from pathlib import Path

from common import ROOT, in_place, started
from loopback import ask

GGUF = Path(os.environ.get("LAPIDARY_CACHE", Path.home() / ".cache/lapidary")) / "models/SmolLM2-135M-Instruct.Q4_1.gguf"
CHATS, LISTS, CLIENTS, TOKENS, TEXTS = 12, 12, 4, 64, 8


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def peer(gguf, *flags):
    """llama-cpp-python's server: (address, pid)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = os.cpu_count()
    command = [sys.executable, "-m", "llama_cpp.server", "--model", gguf, "--port", port, "--n_ctx", 2048,
               "--logits_all", "false", "--n_threads", threads, "--n_threads_batch", threads, *flags]
    server = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                asyncio.run(ask(address, "/v1/models"))
                break
            except OSError:
                time.sleep(0.2)
        else:
            raise SystemExit("llama-cpp-python's server did not start")
        yield address, server.pid
    finally:
        server.kill()
        server.wait()


async def worked(address, bodies):
    """Four requests at a time; returns (tokens, texts) that came back."""
    left, done = list(bodies), [0, 0]

    async def client():
        while left:
            path, body = left.pop()
            status, _, reply = await ask(address, path, body)
            if status != 200:
                raise SystemExit(f"{address}{path}: expected 200, found {status} {reply}")
            if "chat" in path:
                done[0] += reply["usage"]["completion_tokens"]
            else:
                done[1] += len(reply["data"])

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return done


async def both(address, chats, embeds):
    (tokens, _), (_, texts) = await asyncio.gather(worked(address, chats), worked(address, embeds))
    return tokens, texts


def measure(server, work):
    """(tokens, texts, CPU seconds, wall seconds)."""
    address, pid = server
    cpu, wall = cpu_seconds(pid), time.perf_counter()
    tokens, texts = asyncio.run(work(address))
    return tokens, texts, cpu_seconds(pid) - cpu, time.perf_counter() - wall


def jobs(lines, number):
    """Chats and lists of texts of a round."""
    lines = lines[number * 200:][:200]
    chats = [("/v1/chat/completions", {"messages": [{"role": "user", "content": f"Go on: {line}"}], "temperature": 0,
                                       "max_tokens": TOKENS}) for line in lines[:CHATS]]
    texts = lines[CHATS:]
    return chats, [("/v1/embeddings", {"input": texts[i * TEXTS:][:TEXTS]}) for i in range(LISTS)]


def main():
    in_place("throughput", "llama-cpp-python[server]")
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gguf", type=Path, default=GGUF)
    parser.add_argument("--out", type=Path)
    options, flags = parser.parse_known_args()
    with gzip.open(ROOT / "data/wiki_sentences.txt.gz", "rt", encoding="utf8") as file:
        lines = file.read().splitlines()
    found = {"llama-cpp-python, chat": [], "lapidary, chat": [], "llama-cpp-python, texts": [], "lapidary, texts": [],
             "lapidary, chat and texts at once": []}
    # Without this it answers with the vectors of all tokens.
    mean = ["--embedding", "true", "--kv_overrides", "llama.pooling_type=int:1"]
    with started(flags) as ours, peer(options.gguf) as chat, peer(options.gguf, *mean) as embed:
        own = (ours.address, ours.pid)
        for number in range(options.rounds + 1):  # The first warms up.
            # Both at once with prompts of its own: none of them has run before.
            (chats, embeds), later = jobs(lines, 2 * number), jobs(lines, 2 * number + 1)
            works = [(chat, lambda to: worked(to, chats)), (own, lambda to: worked(to, chats)),
                     (embed, lambda to: worked(to, embeds)), (own, lambda to: worked(to, embeds)),
                     (own, lambda to: both(to, *later))]
            for results, (server, work) in zip(found.values(), works):
                result = measure(server, work)
                if number > 0:
                    results.append(result)
    report(found, options.out)


def report(found, out):
    rows = ["| server | tokens | texts | CPU s | wall s |", "|---|---|---|---|---|"]
    for what, results in found.items():
        tokens, texts = (sum(one[i] for one in results) for i in (0, 1))
        cpu, wall = (sum(one[i] for one in results) for i in (2, 3))
        rows.append(f"| {what} | {tokens} | {texts} | {cpu:.2f} | {wall:.2f} |")
    ratios = {what: ([], []) for what in ("chat", "texts", "both at once")}
    for chat, own_chat, embed, own_embed, own_both in zip(*found.values()):
        for i in (2, 3):
            a_token, a_text = chat[i] / chat[0], embed[i] / embed[1]
            ratios["chat"][i - 2].append(own_chat[i] / own_chat[0] / a_token)
            ratios["texts"][i - 2].append(own_embed[i] / own_embed[1] / a_text)
            ratios["both at once"][i - 2].append(own_both[i] / (a_token * own_both[0] + a_text * own_both[1]))
    rows.append("\nOurs to theirs for as many tokens and texts, medians of the rounds (smallest to largest):\n")
    for what, of in ratios.items():
        told = [f"{name} {statistics.median(ratio):.2f} ({min(ratio):.2f} to {max(ratio):.2f})"
                for name, ratio in zip(("CPU", "wall"), of)]
        rows.append(f"- {what}: {', '.join(told)}")
    text = "\n".join(rows) + "\n"
    print(text)
    if out:
        out.write_text(text)


main()
