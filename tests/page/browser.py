#!/usr/bin/env python3
"""Drives the page in headless Chromium through the DevTools protocol, over a pipe: no port, no WebSocket, no package.

    browser.py PAGE HASHES OUT BUG…

HASHES has a line for each script: its hash in the native library, a space, and the script as JSON. OUT is a folder for
screenshots. The bugs are those to be found. Prints what it has checked; fails at the first thing that is wrong.
"""

import base64
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zlib

PAGE, HASHES, OUT = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2], pathlib.Path(sys.argv[3])
FIND_S = 10
FIRST_STEP_S = 1


class Chromium:
    """A browser, and one page of it."""

    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="tidemill-page-")
        to_browser, self.write = os.pipe()
        self.read, from_browser = os.pipe()
        program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
                   "--disable-dev-shm-usage", "--remote-debugging-pipe", f"--user-data-dir={self.folder}"]
        # The browser reads from descriptor 3 and writes to 4.
        command = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        self.process = subprocess.Popen(["bash", "-c", command, "bash", program, *options, "about:blank"],
                                        pass_fds=(to_browser, from_browser), stderr=subprocess.DEVNULL)
        os.close(to_browser)
        os.close(from_browser)
        self.number, self.left = 0, b""
        self.session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.errors = []
        self.call("Page.enable")
        self.call("Runtime.enable")

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(answer["params"]["exceptionDetails"])
            if answer.get("id") == self.number:
                assert "error" not in answer, (method, answer)
                return answer["result"]

    def receive(self):
        while b"\0" not in self.left:
            piece = os.read(self.read, 1 << 20)
            assert piece, "the browser has ended"
            self.left += piece
        message, self.left = self.left.split(b"\0", 1)
        return json.loads(message)

    def run(self, script):
        """The value of a JavaScript expression; a promise is waited for."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, (script, answer["exceptionDetails"])
        return answer["result"].get("value")

    def until(self, script, seconds):
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, f"not within {seconds} s: {script}; {self.text('#place')} {self.errors}"
            time.sleep(0.02)

    def visit(self, hash_):
        """A page of its own for each address, ready."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=f"file://{PAGE}{hash_}")
        self.until("document.documentElement && document.documentElement.dataset.ready === 'yes'", 20)

    def text(self, selector):
        return self.run(f"document.querySelector({json.dumps(selector)}).innerText")

    def click(self, selector):
        """A real click: at the middle of the element, as the pointer does it."""
        where = self.run(f"""(() => {{ const it = document.querySelector({json.dumps(selector)});
            it.scrollIntoView({{ block: 'center' }}); const box = it.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2]; }})()""")
        for kind in ["mousePressed", "mouseReleased"]:
            self.call("Input.dispatchMouseEvent", type=kind, x=where[0], y=where[1], button="left", clickCount=1)

    def choose(self, selector, value):
        """What choosing an option of a list does."""
        self.run(f"""(() => {{ const it = document.querySelector({json.dumps(selector)});
            it.value = {json.dumps(value)}; it.dispatchEvent(new Event('change')); }})()""")

    def key(self, key):
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def screen(self, width, height, dark):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 600)
        value = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": value}])

    def screenshot(self, name):
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        (OUT / f"{name}.png").write_bytes(data)
        return pixels(data)

    def end(self):
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def pixels(png):
    """The rows of a picture, without their filters: enough to count colours."""
    at, data, header = 8, b"", None
    while at < len(png):
        length, kind = struct.unpack(">I4s", png[at:at + 8])
        body = png[at + 8:at + 8 + length]
        header = struct.unpack(">IIBB", body[:10]) if kind == b"IHDR" else header
        data += body if kind == b"IDAT" else b""
        at += 12 + length
    width, height, _, color = header
    raw, wide = zlib.decompress(data), width * {2: 3, 6: 4}[color]
    return [raw[row * (wide + 1) + 1:(row + 1) * (wide + 1)] for row in range(height)]


def check_first_step(page):
    page.visit("#scenario=echo")
    took = page.run("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
    ready = page.run("performance.now()")
    page.key("ArrowRight")
    assert page.text("#place").startswith("Step 2,"), page.text("#place")
    assert ready < FIRST_STEP_S * 1000 * SLOW, (took, ready)
    print(f"the first step is possible {ready:.0f} ms after the navigation")


def check_hashes(page):
    lines = pathlib.Path(HASHES).read_text().splitlines()
    scripts = [json.loads(line.split(" ", 1)[1]) for line in lines]
    wanted = [line.split(" ", 1)[0] for line in lines]
    page.visit("#scenario=echo")
    got = []
    for start in range(0, len(scripts), 100):
        got += page.run(f"""{json.dumps(scripts[start:start + 100])}.map((text) => {{
            give(text); const answer = JSON.parse(take(loop.play())); return answer.hash || answer.error; }})""")
    wrong = [(script, ours, theirs) for script, ours, theirs in zip(scripts, wanted, got) if ours != theirs]
    assert not wrong, (len(wrong), wrong[0])
    print(f"{len(scripts)} scripts have the same hash as in the native library")


def check_keyboard_and_address(page):
    page.visit("#scenario=slow-reader")
    for key, number in [("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2), ("Home", 1)]:
        page.key(key)
        assert page.text("#place").startswith(f"Step {number},"), (key, page.text("#place"))
    page.key("t")
    turn = page.text("#place")
    page.key("u")
    address = page.run("location.hash")
    there = page.text("#place")
    assert "reap" in there and turn != there, there
    page.visit(address)
    assert page.text("#place") == there, "the address is the experiment"
    print("keys step, and the address leads to the same step")


def check_edited_script(page):
    page.visit("#scenario=echo")
    page.click("#editor summary")
    page.run("document.querySelector('#script').value = 'serve echo\\nann connects\\nann says \"mine\"\\n'")
    page.click("#apply")
    page.choose("#until", "write")
    page.click("#run")
    assert "write #0.1: 4 B" in page.text("#log"), page.text("#log")
    page.run("document.querySelector('#script').value = 'ann dances'")
    page.click("#apply")
    assert "line 1" in page.text("#problem"), page.text("#problem")
    print("an edited script is played, and a mistake is told with its line")


def check_bugs(page, names):
    slowest = 0
    for name in names:
        page.visit("#scenario=echo")
        page.choose("#bug", name)
        began = time.monotonic()
        page.click("#find")
        page.until("!document.querySelector('#find').disabled && !searching", FIND_S * SLOW)
        took = time.monotonic() - began
        said = page.text("#place")
        assert said.startswith("Found in"), (name, said)
        slowest = max(slowest, took)
        print(f"  {name}: {said}")
    print(f"{len(names)} bugs are switched on and found, the slowest in {slowest:.1f} s")


def check_lost_wake_ups(page):
    """Three wake-ups that are lost, found click by click: a scenario, a bug, the breakpoint, run."""
    for bug, scenario, told in LOST:
        page.visit("")
        page.choose("#scenario", scenario)
        page.choose("#bug", bug)
        page.choose("#until", "stuck")
        page.click("#first")
        page.click("#run")
        log = page.text("#log")
        assert told in log, (bug, scenario, log)
        page.choose("#bug", "")
        page.click("#first")
        page.click("#run")
        assert told not in page.text("#log"), (scenario, "without the bug")
        print(f"  {bug} in {scenario}: {told}")
    print("three planted lost wake-ups are found with clicks alone")


def check_pictures(page, names):
    seen = set()
    for name in names:
        for width, height in [(400, 900), (1400, 1000)]:
            for dark in [False, True]:
                page.screen(width, height, dark)
                page.visit(f"#scenario={name}")
                page.run("for (let n = 0; n < 12; n += 1) keys.ArrowDown()")
                wide = page.run("document.documentElement.scrollWidth")
                assert wide <= width, f"{name}: {wide} columns in {width}"
                rows = page.screenshot(f"{name}-{width}-{'dark' if dark else 'light'}")
                colours = len({bytes(row[at:at + 3]) for row in rows[::5] for at in range(0, len(row) - 3, 12)})
                assert colours > 20, f"{name}: {colours} colours: is it blank?"
                seen.add((width, dark))
    assert len(seen) == 4
    print(f"{len(names)} scenarios fit 400 and 1400 columns, light and dark; the pictures are in {OUT}")


def check_without_scripts(page):
    page.screen(1400, 1000, False)
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    page.call("Page.navigate", url="about:blank")
    page.call("Page.navigate", url=f"file://{PAGE}#x")
    page.call("Emulation.setScriptExecutionDisabled", value=False)
    time.sleep(0.5)
    data = page.call("DOM.getDocument", depth=-1)
    text = json.dumps(data)
    assert "write #0.1: 5 B" in text and "the recorded" in text, "the static explanation"
    print("without scripts the page has the recorded steps")


LOST = [
    ("AnyReadDrains", "missed-edge", "bytes wait in the kernel, and no event comes"),
    ("ShortReadDrains", "half-close", "the peer's end waits in the kernel, and no event comes"),
    ("WriteEdgeMissed", "cut-upstream", "bytes are queued, the kernel has room, and no event comes"),
]

SLOW = float(os.environ.get("TIDEMILL_SLOW", "1"))


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    page = Chromium()
    try:
        check_first_step(page)
        contents = {what: page.run(f"contents.{what}.map((it) => it.name)") for what in ["bugs", "scenarios"]}
        check_hashes(page)
        check_keyboard_and_address(page)
        check_edited_script(page)
        check_lost_wake_ups(page)
        missing = set(sys.argv[4:]) - set(contents["bugs"])
        assert not missing, f"the page cannot switch on {missing}"
        check_bugs(page, sys.argv[4:])
        check_pictures(page, [*contents["scenarios"], "crowd&bug=ReapUnbounded"])
        check_without_scripts(page)
        assert not page.errors, page.errors
    finally:
        page.end()


main()
