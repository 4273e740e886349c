"""Chromium without a window, driven over a pipe by its DevTools protocol: nothing else is needed for it."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[1] / "unit"
sys.path += [str(UNIT), str(UNIT / "tf_cluster/report")]
FOUND = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--disable-dev-shm-usage", "--window-size=1280,1000", "--remote-debugging-pipe",
)  # fmt: skip
LIMIT = 60  # seconds that an answer may take


class Browser:
    """A browser with one page, what the page complained of, and what it asked the network for."""

    def __init__(self, profile):
        orders, self.write = os.pipe()
        self.read, answers = os.pipe()
        # Chromium reads its orders from 3 and answers on 4; numbers from 10 up are in nobody's way.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (orders, answers)]
        line = f'exec "$@" 3<&{ends[0]} 4>&{ends[1]} {ends[0]}<&- {ends[1]}>&-'
        words = [FOUND, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(
            ["bash", "-c", line, "bash", *words], pass_fds=ends, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        for end in (orders, answers, *ends):
            os.close(end)
        self.number, self.rest, self.session = 0, b"", None
        self.complaints, self.requests, self.loaded = [], [], False
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method, **params):
        """Call a method of the protocol and return its result."""
        self.number += 1
        order = {"id": self.number, "method": method, "params": params}
        os.write(self.write, json.dumps(order | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
        while True:
            message = self.message()
            if message.get("id") == self.number:
                assert "error" not in message, message
                return message["result"]

    def message(self):
        """Return the next message, and note what it reports of the page."""
        deadline = time.monotonic() + LIMIT
        while b"\0" not in self.rest:
            assert select.select([self.read], [], [], max(0, deadline - time.monotonic()))[0], "the browser does not answer"
            data = os.read(self.read, 1 << 20)
            assert data, "the browser has ended"
            self.rest += data
        text, self.rest = self.rest.split(b"\0", 1)
        message = json.loads(text)
        event, told = message.get("method"), message.get("params", {})
        if event == "Page.loadEventFired":
            self.loaded = True
        elif event in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.complaints.append(told)
        elif event == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        return message

    def open(self, place):
        """Open a file or a URL and wait until it is loaded."""
        self.complaints, self.requests, self.loaded = [], [], False
        self.ask("Page.navigate", url=place if isinstance(place, str) else place.as_uri())
        while not self.loaded:
            self.message()

    def value(self, script):
        """Return what a piece of JavaScript evaluates to in the page."""
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script):
        """Wait until a piece of JavaScript is true."""
        deadline = time.monotonic() + LIMIT
        while not self.value(f"Boolean({script})"):
            assert time.monotonic() < deadline, f"still not so: {script}"
            time.sleep(0.05)

    def press(self, key, code, modifiers=0):
        """Press a key, by its name and its code."""
        for kind in ("rawKeyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, modifiers=modifiers)

    def click(self, element):
        """Click on the middle of an element, a piece of JavaScript."""
        box = self.value(f"(box => [box.x + box.width / 2, box.y + box.height / 2])({element}.getBoundingClientRect())")
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def picture(self, path):
        """Write a picture of the whole page."""
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"]))

    def close(self):
        """End it."""
        try:
            self.session = None
            self.ask("Browser.close")
        finally:
            self.process.wait(timeout=LIMIT)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Return the browser."""
    if not FOUND:
        pytest.skip("there is no chromium on this machine")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()
