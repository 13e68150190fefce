"""A small HTTP client for load on a server of this machine: asyncio and nothing else, one connection a request."""
import asyncio, json, time
from urllib.parse import urlsplit


class Answer:
    """Its head has been read; the body comes by `pieces`."""

    def __init__(self, reader, writer):
        self.reader, self.writer, self.status, self.headers = reader, writer, None, {}

    async def head(self):
        line = await self.reader.readline()
        if not line:
            raise ConnectionResetError("closed before an answer")
        self.status = int(line.split()[1])
        while line := (await self.reader.readline()).strip():
            name, value = line.decode().split(":", 1)
            self.headers[name.lower()] = value.strip()
        return self

    async def pieces(self):
        if self.headers.get("transfer-encoding") != "chunked":
            yield await self.reader.readexactly(int(self.headers["content-length"]))
            return
        while size := int(await self.reader.readline() or b"bad", 16):
            yield (await self.reader.readexactly(size + 2))[:-2]

    async def json(self):
        return json.loads(b"".join([piece async for piece in self.pieces()]))

    async def events(self):
        """(seconds, data) of each server-sent event, [DONE] as None."""
        rest = b""
        async for piece in self.pieces():
            *whole, rest = (rest + piece).split(b"\n\n")
            for event in whole:
                if event.startswith(b"data:"):
                    data = event[5:].strip()
                    yield time.monotonic(), None if data == b"[DONE]" else json.loads(data)

    def close(self):
        self.writer.close()


async def opened(address, path, body=None):
    """Sends a request; its answer is not yet read."""
    to = urlsplit(address)
    if to.hostname != "127.0.0.1":
        raise ValueError(f"address: expected 127.0.0.1, found {to.hostname}")
    reader, writer = await asyncio.open_connection(to.hostname, to.port, limit=1 << 22)
    payload = b"" if body is None else json.dumps(body).encode()
    method = "GET" if body is None else "POST"
    head = f"{method} {path} HTTP/1.1\r\nhost: {to.netloc}\r\nconnection: close\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(payload)}\r\n\r\n".encode() + payload)
    await writer.drain()
    return Answer(reader, writer)


async def ask(address, path, body=None):
    """The whole answer: status, headers and JSON."""
    answer = await opened(address, path, body)
    try:
        await answer.head()
        return answer.status, answer.headers, await answer.json()
    finally:
        answer.close()


def resident_mib(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS:"))


def percentile(values, share):
    """The value that this share of them does not pass."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")
