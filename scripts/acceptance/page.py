"""The page of `lapidary serve` in a real Chromium: chat, texts, compression, live figures, key, themes, phone, accessibility.

usage: page.py [LAPIDARY] [SERVE FLAG]...

LAPIDARY (target/release/lapidary) is started on a port of its own with the model that comes with it. Playwright and axe-core
are installed into a virtual environment in target/acceptance/page; pictures of every part are written to its folder pictures.
Needs a Chromium on the path: `apt-get install chromium`.
"""
import json, math, re, shutil, sys, time, urllib.request
from contextlib import contextmanager

from common import ROOT, check, in_place, started

PARTS = ["chat", "texts", "compress", "live"]
PICTURES = ROOT / "target/acceptance/page/pictures"
DESKTOP, PHONE = {"width": 1100, "height": 800}, {"width": 360, "height": 740}


def main():
    in_place("page", "axe-playwright-python")
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("no Chromium on the path; on Debian: apt-get install chromium")
    PICTURES.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        # Chromium's own sandbox does not run as root; only this server's page is opened.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        with started(sys.argv[1:]) as server:
            files(server.address)
            with opened(browser, server.address) as page:
                head(page, server.address)
                chat(page, server.address)
                texts(page, server.address)
                compress(page, server.address)
                live(page, server.address)
                keyboard(page)
                looks(page)
            refusals(browser, server.address)
        with started(sys.argv[1:], "--api-key", "secret") as server:
            key(browser, server.address)
        browser.close()
    print("pictures:", PICTURES.relative_to(ROOT))


@contextmanager
def opened(browser, address, expected=()):
    """A page that must neither write errors to the console, but those with a word of `expected`, nor ask other servers."""
    page, errors, strangers = browser.new_page(viewport=DESKTOP, color_scheme="light"), [], []
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(address) else strangers.append(request.url))
    page.set_default_timeout(60_000)
    page.goto(address)
    yield page
    errors = [error for error in errors if not any(word in error for word in expected)]
    check(f"no errors in the console {errors or ''}", not errors)
    check(f"nothing asked of other servers {strangers or ''}", not strangers)
    page.close()


def sent(address, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{address}/{path}", data, {"Content-Type": "application/json"})
    return urllib.request.urlopen(request, timeout=120)


def ask(address, path, body=None):
    with sent(address, path, body) as response:
        return json.load(response)


def soon(holds, seconds=20):
    end = time.monotonic() + seconds
    while not (found := holds()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def files(address):
    with urllib.request.urlopen(address) as response:
        policy, page = response.headers["Content-Security-Policy"], response.read()
    check(f"the policy of the page: {policy}", policy == "default-src 'self'")
    folder = ROOT / "crates/cli/src/serve/page"
    size = len(page)
    for path in sorted(folder.iterdir()):
        if path.name != "index.html":
            with urllib.request.urlopen(f"{address}/page/{path.name}") as response:
                size += len(response.read())
    check(f"the page is small: {size / 1000:.0f} kB", size < 60_000)


def show(page, part):
    page.click(f"#tab-{part}")
    check(f"part {part} opens", page.is_visible(f"#panel-{part}") and page.locator("[role=tabpanel]:visible").count() == 1)


def head(page, address):
    model = ask(address, "v1/models")["data"][0]
    soon(lambda: page.inner_text("#model-short"))
    check("the model's name", page.inner_text("#model-name") == model["id"])
    page.click("#model summary")
    check("the fingerprint", page.inner_text("#model-fingerprint") == model["fingerprint"])
    page.click("#model summary")


def say(page, text, tokens):
    """Sends a message and returns the place of the reply."""
    page.fill("#chat-text", text)
    page.fill("#chat-tokens", str(tokens))
    page.fill("#chat-temperature", "0")
    turns = page.locator("#chat-log .turn").count()
    page.press("#chat-text", "Enter")
    return page.locator("#chat-log .turn").nth(turns + 1)


WATCH = """() => {
  window.seen = new Set();
  const look = () => document.querySelectorAll('.turn:not(.own) .said').forEach((said) => window.seen.add(said.textContent));
  new MutationObserver(look).observe(document.querySelector('#chat-log'), { childList: true, subtree: true, characterData: true });
}"""


def chat(page, address):
    posted = []
    page.on("request", lambda request: posted.append(request.post_data_json) if "chat/completions" in request.url else None)
    page.evaluate(WATCH)
    reply = say(page, "What is the capital of France?", 32)
    reply.locator(".hint").wait_for()
    pieces = page.evaluate("window.seen.size")
    print("       ", reply.inner_text().replace("\n", " | "))
    check(f"the reply comes in pieces: {pieces}", pieces > 2 and "Paris" in reply.inner_text())
    told = reply.locator(".hint").inner_text()
    check("tokens a second and the time of the first", re.search(r"first after \d+\.\d\d s · \d+\.\d tokens/s", told))
    message = "And of <b>Spain</b>?<img src=x onerror=alert(1)>"
    say(page, message, 8).locator(".hint").wait_for()
    check("the second message brings the first along", [len(one["messages"]) for one in posted] == [1, 3])
    check("what is said stays text", message in page.inner_text("#chat-log") and page.locator("main img, main b").count() == 0)

    reply = say(page, "Tell me a very long story about a river.", 1500)
    soon(lambda: len(reply.locator(".said").inner_text()) > 40)
    page.click("#chat-form [type=submit]")
    reply.locator(".hint").wait_for()
    told = reply.locator(".hint").inner_text()
    check(f"stop: {told}", told.endswith("stopped") and reply.locator(".said").inner_text())
    check("the server stops too", soon(lambda: ask(address, "health")["running"] == 0, 5))
    page.click("#chat-clear")
    check("clear", page.locator(".turn").count() == 0 and page.is_visible("#chat-log .hint"))
    say(page, "Name three colours.", 32).locator(".hint").wait_for()
    check("after clear nothing is remembered", len(posted[-1]["messages"]) == 1)


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def compare(page, address, lines):
    """Compares the lines on the page, and the page with what is computed here."""
    page.fill("#texts-input", "\n".join(lines))
    page.click("#texts-form [type=submit]")
    soon(lambda: page.locator("#nearest li").count() == len(lines))
    vectors = [one["embedding"] for one in ask(address, "v1/embeddings", {"input": lines})["data"]]
    cells = page.locator("#heat td:not(:empty)").all_inner_texts()
    cells = [float(cell.replace("−", "-")) for cell in cells]
    n = len(lines)
    check(f"{n} x {n} cells", len(cells) == n * n)
    check("1.00 on the diagonal", all(cells[i * n + i] == 1 for i in range(n)))
    table = [[cosine(a, b) for b in vectors] for a in vectors]
    check("cells are cosines", all(abs(cells[i * n + j] - table[i][j]) < 0.006 for i in range(n) for j in range(n)))
    nearest = [max((j for j in range(n) if j != i), key=lambda j: table[i][j]) for i in range(n)]
    told = [int(re.search(r"→ (\d+),", line)[1]) - 1 for line in page.locator("#nearest li span").all_inner_texts()]
    check(f"nearest to each: {[j + 1 for j in told]}", told == nearest)
    check("the nearest pair is said", "Nearest of all" in page.inner_text("#texts-status"))
    check(f"{n} points, all labelled", page.locator("#map circle").count() == n == page.locator("#map text").count())
    return vectors


def texts(page, address):
    show(page, "texts")
    filled = page.input_value("#texts-input").splitlines()
    check("lines to start with", len(filled) >= 4)
    vectors = compare(page, address, filled[:3])
    # Three points lie in a plane: their map must keep the proportions of all distances.
    points = page.evaluate("[...document.querySelectorAll('#map circle')].map((c) => [+c.getAttribute('cx'), +c.getAttribute('cy')])")
    pairs = [(0, 1), (0, 2), (1, 2)]
    ratios = [math.dist(points[i], points[j]) / math.dist(vectors[i], vectors[j]) for i, j in pairs]
    check("the map keeps distances", max(ratios) / min(ratios) < 1.001 and "100 %" in page.inner_text("#map-note"))
    compare(page, address, filled)


def compress(page, address):
    show(page, "compress")
    page.click("#compress-form [type=submit]")
    page.wait_for_selector("#compress-result")
    figures = page.locator("#compress-figures dd").all_inner_texts()
    before, after = (int(number.replace(",", "")) for number in figures[0].split(" → "))
    text = page.input_value("#compress-input")
    same = ask(address, "v1/compress", {"input": text})
    check(f"{before} tokens became {after}", (before, after) == (same["num_text_tokens"], same["num_special_tokens"]))
    check(f"bytes: {figures[2]}", figures[2] == f"{round(same['num_kv_bytes'] / 1000):,} kB" and same["num_kv_bytes"] > 0)
    recalled, marked = page.inner_text("#compress-recalled"), page.locator("#compress-recalled mark").all_inner_texts()
    print("       ", recalled)
    check(f"words that came back: {marked}", recalled and all(word.lower().removesuffix("'s") in text.lower() for word in marked))
    check("the original beside it", page.inner_text("#compress-original") == text.strip())
    page.click("#ask-form [type=submit]")
    page.wait_for_selector("#ask-reply .hint")
    said = page.inner_text("#ask-reply .said")
    print("       ", said)
    check("a question about it gets a reply", said and page.inner_text("#ask-status") == "")


def live(page, address):
    show(page, "live")
    asked = []
    page.on("request", lambda request: asked.append(time.monotonic()) if request.url.endswith("/health") else None)
    story = {"role": "user", "content": "Tell me a very long story about a river."}
    body = {"messages": [story], "temperature": 0, "max_tokens": 4000, "stream": True}
    running = lambda: page.locator("#live-figures dd span:first-child").first.inner_text()
    work = sent(address, "v1/chat/completions", body)
    check("the running conversation is seen", soon(lambda: running() not in ("–", "0")))
    page.wait_for_timeout(2500)
    values = page.locator("#live-figures dd span:first-child").all_inner_texts()
    check(f"all figures are known: {values}", "–" not in values and values[-1].split()[0] != "0")
    lines = page.locator("#live-figures polyline").first.get_attribute("points").split()
    check(f"the lines grow: {len(lines)} points", len(lines) >= 3)
    work.close()
    check("it ends when its client goes", soon(lambda: running() == "0"))
    show(page, "chat")
    page.wait_for_timeout(500)
    count = len(asked)
    page.wait_for_timeout(2500)
    check("nothing is asked while nobody looks", len(asked) == count)


def keyboard(page):
    page.evaluate("document.activeElement.blur()")
    focused = lambda: page.evaluate("document.activeElement.id || document.activeElement.tagName")
    page.focus("#tab-chat")
    page.keyboard.press("ArrowRight")
    check("arrows go from part to part", focused() == "tab-texts" and page.is_visible("#panel-texts"))
    page.keyboard.press("Home")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    check("the focus is seen", focused() == "tab-chat" and outline == "solid")
    for _ in range(2):
        page.keyboard.press("Tab")
    check("from the parts to the message in two steps", focused() == "chat-text")
    turns = page.locator(".turn").count()
    page.keyboard.type("Hi!")
    page.keyboard.press("Enter")
    soon(lambda: page.locator(".turn .hint").count() * 2 == turns + 2)
    check("a message by keys alone", page.locator(".turn").count() == turns + 2)


def ground(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def looks(page):
    """Both themes, on a desk and on a phone: pictures, what is too wide, what axe-core finds."""
    grounds = {}
    for name, size, scheme in [("light", DESKTOP, "light"), ("dark", DESKTOP, "dark"), ("phone", PHONE, "light")]:
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size(size)
        grounds[name] = ground(page)
        for part in PARTS:
            page.click(f"#tab-{part}")
            page.wait_for_timeout(1200 if part == "live" else 200)
            page.screenshot(path=PICTURES / f"{name}-{part}.png", full_page=True)
            wide = page.evaluate("document.scrollingElement.scrollWidth")
            check(f"{name} {part}: {wide} of {size['width']} pixels wide", wide <= size["width"])
            accessible(page, f"{name} {part}")
    check("two themes by the system's wish", grounds["light"] != grounds["dark"])
    page.emulate_media(color_scheme="light")
    page.select_option("#theme", "dark")
    check("the theme by hand", ground(page) == grounds["dark"])
    page.reload()
    check("is remembered", ground(page) == grounds["dark"])
    page.select_option("#theme", "system")
    check("and undone", ground(page) == grounds["light"])
    moves = """() => {
      document.querySelector('#chat-log').innerHTML = '<div class="turn coming"><p class="said"></p></div>';
      return getComputedStyle(document.querySelector('.said'), '::after').animationName;
    }"""
    names = []
    for motion in ["no-preference", "reduce"]:
        page.emulate_media(reduced_motion=motion)
        names.append(page.evaluate(moves))
    check("nothing blinks for those who ask for rest", names == ["blink", "none"])


def accessible(page, where):
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    told = [f"{one['id']}: {one['nodes'][0]['html'][:120]} {one['nodes'][0]['failureSummary'][:300]}" for one in found]
    check(f"{where}: axe-core finds nothing {told or ''}", not found)


def refusals(browser, address):
    """Errors are said plainly, and what was typed is not lost."""
    with opened(browser, address, expected=["400"]) as page:
        text = "word " * ask(address, "v1/models")["data"][0]["max_model_len"]
        say(page, text, 8)
        page.wait_for_selector("#chat-status.error")
        print("       ", page.inner_text("#chat-status"))
        check("a refusal is said", "The server says" in page.inner_text("#chat-status"))
        check("the message is kept", page.input_value("#chat-text") == text.strip() and page.locator(".turn").count() == 0)
        show(page, "texts")
        page.fill("#texts-input", "one line")
        page.click("#texts-form [type=submit]")
        page.wait_for_selector("#texts-status.error")
        check("one text is too few", "Between 2 and" in page.inner_text("#texts-status"))


def key(browser, address):
    with opened(browser, address, expected=["401"]) as page:
        check("no field for a key before it is needed", not page.is_visible("#key"))
        say(page, "Hello!", 8)
        page.wait_for_selector("#key")
        check("the field for the key appears", page.evaluate("document.activeElement.id") == "key-value")
        page.wait_for_selector("#chat-status.error")
        page.screenshot(path=PICTURES / "light-key.png")
        accessible(page, "key")
        page.fill("#key-value", "wrong")
        page.press("#key-value", "Enter")
        check("a wrong key is told", soon(lambda: "does not accept" in page.inner_text("#key-status")))
        page.fill("#key-value", "secret")
        page.press("#key-value", "Enter")
        page.wait_for_selector("#key", state="hidden")
        check("the message was kept", page.input_value("#chat-text") == "Hello!")
        page.press("#chat-text", "Enter")
        page.wait_for_selector(".turn .hint")
        check("with the key there is a reply", page.locator(".turn .said").last.inner_text())
        stored = page.evaluate("[Object.values(sessionStorage), Object.values(localStorage), document.cookie]")
        check("the key is kept for this tab alone", "secret" in stored[0] and "secret" not in stored[1] and not stored[2])


main()
