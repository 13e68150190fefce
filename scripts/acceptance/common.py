"""What the acceptance scripts share: a virtual environment for the client, a server for it to talk to, and checks."""
import os, subprocess, sys, threading, venv
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What all scripts share lies one directory up.
sys.path.append(str(ROOT / "scripts"))
BINARY = ROOT / "target/release/lapidary"


def in_place(name, *packages):
    """Runs this script again in the virtual environment target/acceptance/NAME, made with `packages` if it is not there."""
    if "--help" in sys.argv:
        raise SystemExit(print(sys.modules["__main__"].__doc__.strip()))
    place = ROOT / "target/acceptance" / name
    if Path(sys.prefix) == place:
        return
    python, ready, wanted = place / "bin/python", place / "installed.txt", "\n".join(packages)
    if not (ready.exists() and ready.read_text() == wanted):
        venv.create(place, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
        ready.write_text(wanted)
    os.execv(python, [str(python), *sys.argv])


def check(what, holds):
    print(("ok    " if holds else "FAILED"), what, flush=True)
    if not holds:
        raise SystemExit(1)


def split(arguments):
    """[LAPIDARY] and [SERVE FLAG]... of a script's arguments."""
    own = [] if not arguments or arguments[0].startswith("-") else arguments[:1]
    return own or [str(BINARY)], arguments[len(own):]


class Server:
    """`lapidary serve` on a port of its own, weights as stored unless a flag says otherwise, whatever the machine's default.
    `lines` is what it has said on stderr."""

    def __init__(self, arguments, flags=()):
        binary, more = split(arguments)
        command = [*binary, "serve", "--listen", "127.0.0.1:0", *flags, *more]
        if not any(flag.split("=")[0] == "--weights" for flag in command):
            command += ["--weights", "stored"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        self.pid, self.address, self.lines = self.process.pid, None, []
        for line in self.process.stderr:
            self.lines.append(line)
            if "on http://" in line:
                self.address = line.split("on ")[1].split()[0]
                break
        if self.address is None:
            raise SystemExit(f"the server did not start:\n{''.join(self.lines)}")
        # What it says must be read on, or it would stop at a full pipe.
        threading.Thread(target=lambda: self.lines.extend(self.process.stderr), daemon=True).start()


@contextmanager
def started(arguments, *flags):
    """A server for the block. `arguments` is [LAPIDARY] [SERVE FLAG]... as given to the script, `flags` are the script's own."""
    server = Server(arguments, flags)
    try:
        yield server
        server.process.terminate()
        check("ends when asked to", server.process.wait(timeout=60) == 0)
    finally:
        server.process.kill()
        server.process.wait()
