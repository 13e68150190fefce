"""What goes wrong around `lapidary serve`: killed under load, clients that go away or do not read, malformed bodies.

usage: faults.py [--only killed,gone,slow,malformed] [--times 1000] [LAPIDARY] [SERVE FLAG]...

LAPIDARY (target/release/lapidary) is started on ports of its own with the model that comes with it. schemathesis, which makes
bodies from /openapi.json, is installed into a virtual environment in target/acceptance/faults. --times is how many streams are
left and how many bodies are malformed. All checks are made; the exit code is 1 when one of them fails.
"""
import argparse, asyncio, json, os, random, socket, struct, subprocess, sys, tempfile, time
from pathlib import Path

from common import ROOT, Server, in_place, split, started
from loopback import Answer, ask, opened, resident_mib

CHAT, EMBED = "/v1/chat/completions", "/v1/embeddings"
CLIENT_TIMEOUT = 5
failed = []


def note(what, holds):
    print("ok    " if holds else "FAILED", what, flush=True)
    if not holds:
        failed.append(what)


def story(tokens, **more):
    messages = [{"role": "user", "content": "Write a very long story about a lighthouse keeper and the sea."}]
    return {"messages": messages, "max_tokens": tokens, "stream": True, **more}


async def idle(address, seconds=60):
    """Health, once nothing runs and no page is held; as it is after so many seconds at the latest."""
    until = time.monotonic() + seconds
    while True:
        _, _, health = await ask(address, "/health")
        busy = health["running"] + health["waiting"] + health["texts"] + health["kv_pages"]["held"]
        if busy == 0 or time.monotonic() > until:
            return busy == 0, health
        await asyncio.sleep(0.2)


async def serves(address):
    status, _, reply = await ask(address, CHAT, story(8) | {"stream": False})
    return status == 200 and len(reply["choices"][0]["message"]["content"]) > 0


def files():
    """The files that a server might write to, with size and time."""
    cache = Path(os.environ.get("LAPIDARY_CACHE", Path.home() / ".cache/lapidary"))
    found = [path for place in (cache, ROOT / "models") for path in place.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def open_to_write(pid):
    """Regular files that a process has open for writing."""
    own = os.path.realpath("/proc/self/fd/1")  # What it says goes where this script's words go.
    found = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        try:
            path = os.readlink(f"/proc/{pid}/fd/{number}")
            flags = int(Path(f"/proc/{pid}/fdinfo/{number}").read_text().split("flags:")[1].split()[0], 8)
        except OSError:
            continue
        if flags & os.O_ACCMODE != os.O_RDONLY and os.path.isfile(path) and path != own:
            found.append(path)
    return found


async def killed(flags, _):
    """kill -9 and a restart, three times, with 16 clients."""
    place, seen, done = {}, [], [0]

    async def client(number):
        while "end" not in place:
            try:
                answer = await opened(place["address"], *[(CHAT, story(40)), (EMBED, {"input": ["It rains."] * 8})][number % 2])
                await answer.head()
                if answer.status != 200:
                    seen.append(f"status {answer.status}")
                elif number % 2 == 1:
                    await answer.json()
                elif None not in [event async for _, event in answer.events()]:
                    seen.append("a stream that ended whole, without [DONE]")
                done[0] += 1
                answer.close()
            except (ConnectionError, EOFError):
                await asyncio.sleep(0.1)
            except Exception as error:
                seen.append(repr(error))

    before = files()
    server = Server(flags)
    place["address"] = server.address
    clients = [asyncio.create_task(client(number)) for number in range(16)]
    for _ in range(3):
        await asyncio.sleep(3)
        writes = open_to_write(server.pid)
        server.process.kill()
        server.process.wait()
        server = Server(flags)
        place["address"], done[0] = server.address, 0
        await asyncio.sleep(3)
        note(f"killed: no file was open for writing {writes}", not writes)
        note(f"killed: the new process serves, {done[0]} answers", done[0] > 0 and await serves(server.address))
    place["end"] = True
    await asyncio.wait_for(asyncio.gather(*clients), 120)
    server.process.terminate()
    note("killed: the last process ends when asked to", server.process.wait(timeout=60) == 0)
    note(f"killed: clients saw connection errors and nothing else {seen[:3]}", not seen)
    note("killed: the files are as before", files() == before)


async def gone(flags, options):
    """Clients that go away in mid-stream, and some that do not wait for their vectors."""
    with started(flags) as server:
        chance, limit, memory = random.Random(2), asyncio.Semaphore(16), []

        async def leave(number):
            async with limit:
                embeds = number % 5 == 4
                body = {"input": ["The sea was calm that night."] * 16} if embeds else story(200)
                answer = await opened(server.address, EMBED if embeds else CHAT, body)
                if not embeds:
                    await answer.head()
                    events, most = answer.events(), chance.randrange(6)
                    for _ in range(most):
                        await anext(events)
                    await events.aclose()
                if number % 2:  # By a reset, as when a process dies.
                    link = answer.writer.get_extra_info("socket")
                    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                answer.close()
                if number % max(1, options.times // 10) == 0:
                    memory.append(resident_mib(server.pid))

        await asyncio.gather(*(leave(number) for number in range(options.times)))
        ended, health = await idle(server.address)
        note(f"gone: after {options.times} clients nothing runs and no page is held: {health}", ended)
        note("gone: the server serves", await serves(server.address))
        early, last = memory[len(memory) // 5], resident_mib(server.pid)
        note(f"gone: resident memory is flat, {early:.1f} MiB early, {last:.1f} MiB at the end", last < 1.02 * early)
        note("gone: no panic", not any("panicked" in line for line in server.lines))


async def stalled(address):
    """A stream whose client reads nothing. Its window is small, and the events are so many and fat that the kernel's own
    buffer, of some megabytes, cannot take them: they wait in the server."""
    link = socket.socket()
    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    link.setblocking(False)
    host, port = address.removeprefix("http://").split(":")
    await asyncio.get_running_loop().sock_connect(link, (host, int(port)))
    body = json.dumps(story(1500, logprobs=True, top_logprobs=20, n=8, temperature=1)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    await asyncio.get_running_loop().sock_sendall(link, head + body)
    return link


async def slow(flags, _):
    """Clients that open a stream and read nothing."""
    known = subprocess.run([*split(flags)[0], "serve", "--help"], capture_output=True, text=True).stdout
    has_flag = "--client-timeout" in known
    note("slow: serve has --client-timeout", has_flag)
    with started(flags, *(["--client-timeout", str(CLIENT_TIMEOUT)] if has_flag else [])) as server:
        links = [await stalled(server.address) for _ in range(4)]
        await asyncio.sleep(1)
        _, _, health = await ask(server.address, "/health")
        note(f"slow: four streams run: {health}", health["running"] >= 4)
        start = time.monotonic()
        note("slow: others are served meanwhile", await serves(server.address))
        print(f"        in {time.monotonic() - start:.2f} s")
        ended, health = await idle(server.address, seconds=120)
        note(f"slow: they come to an end, after {time.monotonic() - start:.0f} s: {health}", ended)
        await asyncio.sleep(CLIENT_TIMEOUT + 3)
        whole = [await asyncio.wait_for(drained(link), 60) for link in links]
        note(f"slow: the server dropped them before [DONE] {whole}", not any(whole))


async def drained(link):
    """Whether a stream comes to its end, read now."""
    text = b""
    try:
        while piece := await asyncio.wait_for(asyncio.get_running_loop().sock_recv(link, 1 << 16), 10):
            text += piece
            if b"[DONE]" in text[-100:]:
                return True
    except (OSError, asyncio.TimeoutError):
        pass
    finally:
        link.close()
    return False


async def raw(address, path, body):
    """The status of a body that is sent as it is; it is JSON by its type alone."""
    host, port = address.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()
    answer = await Answer(reader, writer).head()
    reply = await answer.json()
    answer.close()
    return answer.status, reply


BODIES = [
    b"", b"{", b"[]", b"null", b"1e999", b"\xff\xfe", b'{"input": "\\ud800"}', b"[" * 100_000, b'{"input":' * 20_000,
    b'{"input": []}', b'{"input": [[]]}', b'{"input": [1.5]}', b'{"input": [-1]}', b'{"input": [4294967295]}', b'{"input": {}}',
    b'{"input": "a", "dimensions": -1}', b'{"input": "a", "dimensions": 1e30}', b'{"input": "a", "encoding_format": "x"}',
    b'{"messages": []}', b'{"messages": [{}]}', b'{"messages": [{"role": "user", "content": [{"type": "text"}]}]}',
    b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": -1}', b'{"prompt": [], "max_tokens": 1}',
    b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}', b'{"prompt": "a", "max_tokens": 1e20}',
    b'{"prompt": "a", "n": -1}', b'{"prompt": "a", "stop": [""]}', b'{"prompt": "a", "logprobs": 99999999999999999999}',
]


async def malformed(flags, options):
    # Short rows: many bodies that are meant to be wrong are right, and would run to the end of a long one.
    with started(flags, "--kv-tokens", "256") as server:
        wrong = []
        for path in (EMBED, CHAT, "/v1/completions", "/tokenize", "/detokenize"):
            for body in BODIES:
                status, reply = await asyncio.wait_for(raw(server.address, path, body), 60)
                if status >= 500 or (status >= 400 and "message" not in reply.get("error", {})):
                    wrong.append((path, body[:60], status, reply))
        for one in wrong:
            print("       ", *one)
        note("malformed: bodies written by hand have no 5xx, and errors say what they are", not wrong)
        found = subprocess.run(["curl", "-sf", "-o", os.devnull, f"{server.address}/openapi.json"]).returncode == 0
        note("malformed: /openapi.json is there", found)
        if found:
            schemathesis(server, options.times)
        ended, health = await idle(server.address)
        note(f"malformed: afterwards nothing runs: {health}", ended and health["status"] == "ok")
        note("malformed: the server serves", await serves(server.address))
        note("malformed: no panic", not any("panicked" in line for line in server.lines))


def schemathesis(server, times):
    with tempfile.TemporaryDirectory() as work:
        report = Path(work) / "events.ndjson"
        ended = subprocess.run(
            [Path(sys.prefix) / "bin/schemathesis", "run", f"{server.address}/openapi.json", "--mode", "negative", "--phases",
             "coverage,fuzzing", "--checks", "not_a_server_error,response_schema_conformance,status_code_conformance",
             "--max-examples", str(max(20, times // 4)), "--request-timeout", "60", "--generation-database", "none",
             "--seed", "1", "--continue-on-failure", "--report-ndjson-path", report, "--no-color"],
            cwd=work, capture_output=True, text=True)
        if ended.returncode != 0:
            print(ended.stdout[-6000:], ended.stderr[-2000:])
        sent = report.read_text().count('"status_code"') if report.exists() else 0
        note(f"malformed: schemathesis finds nothing wrong, {sent} answers", ended.returncode == 0)
        note(f"malformed: at least {times} bodies", sent >= times)


def main():
    in_place("faults", "schemathesis")
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--only", default="killed,gone,slow,malformed")
    parser.add_argument("--times", type=int, default=1000)
    options, flags = parser.parse_known_args()
    for name in options.only.split(","):
        asyncio.run({"killed": killed, "gone": gone, "slow": slow, "malformed": malformed}[name](flags, options))
    raise SystemExit(bool(failed))


main()
