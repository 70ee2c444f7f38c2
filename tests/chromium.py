"""Headless Chromium, over a pipe in its DevTools protocol: what a page looks like, and what it does."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path


def path():
    """The program, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextlib.contextmanager
def browser(folder: Path, *options: str):
    """A browser whose profile is in a folder."""
    opened = Browser(folder, options)
    try:
        yield opened
    finally:
        opened.close()


class Browser:
    """One page of a browser."""

    def __init__(self, folder: Path, options=()) -> None:
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()

        def fds():  # the program reads 3 and writes 4
            os.dup2(to_read, 13)
            os.dup2(to_write, 14)
            os.dup2(13, 3)
            os.dup2(14, 4)

        self._process = subprocess.Popen(
            [path(), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             "--disable-background-networking", "--no-first-run", "--hide-scrollbars",
             f"--user-data-dir={folder}", "--remote-debugging-pipe", *options, "about:blank"],
            preexec_fn=fds, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        self._number, self._buffer, self.events = 0, b"", []
        targets = self._call("Target.getTargets", session=False)["targetInfos"]
        page = next(t["targetId"] for t in targets if t["type"] == "page")
        self._session = self._call("Target.attachToTarget", session=False, targetId=page, flatten=True)[
            "sessionId"
        ]
        for name in ("Page", "Network", "Runtime", "Log"):
            self._call(f"{name}.enable")

    def open(self, url, *, width, height=900, dark=False, phone=False):
        """Load a page, to the end."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self._call("Page.navigate", url=url)
        self._until(lambda: any(e["method"] == "Page.loadEventFired" for e in self.events))

    def ask(self, expression):
        """The value of a JavaScript expression."""
        return self._call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get(
            "value"
        )

    def shot(self, file, clip=None):
        """A png of the whole page, or of (x, y, width, height)."""
        metrics = self._call("Page.getLayoutMetrics")
        size = metrics["cssContentSize"]
        x, y, width, height = clip or (0, 0, size["width"], size["height"])
        box = {"x": x, "y": y, "width": width, "height": height, "scale": 1}
        seen = metrics["cssLayoutViewport"]
        # Beyond what is seen the browser makes its window larger for a moment, which a page may notice.
        beyond = x + width > seen["clientWidth"] or y + height > seen["clientHeight"]
        made = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=beyond, clip=box)
        Path(file).write_bytes(base64.b64decode(made["data"]))

    def wait(self, expression, seconds=20):
        """Until a JavaScript expression is true; its value."""
        end = time.monotonic() + seconds
        while not (value := self.ask(expression)):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.05)
        return value

    def drag(self, start, end, steps=8, seconds=0.4):
        """Press at (x, y), move in steps, release."""
        self._mouse("mousePressed", start, buttons=1)
        for step in range(1, steps + 1):
            place = [a + (b - a) * step / steps for a, b in zip(start, end, strict=True)]
            self._mouse("mouseMoved", place, buttons=1)
            time.sleep(seconds / steps)
        self._mouse("mouseReleased", end)

    def click(self, place):
        self._mouse("mouseMoved", place)
        self._mouse("mousePressed", place, buttons=1)
        self._mouse("mouseReleased", place)

    def wheel(self, place, delta):
        x, y = place
        self._call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=delta)

    def type(self, text):
        """Into what has the focus, in place of what is selected."""
        self._call("Input.insertText", text=text)

    def save_to(self, folder):
        """Where downloads go."""
        self._call("Browser.setDownloadBehavior", session=False, behavior="allow", downloadPath=str(folder))

    def give(self, selector, *files):
        """Choose files in an input of the page."""
        root = self._call("DOM.getDocument")["root"]["nodeId"]
        node = self._call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self._call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def _mouse(self, type, place, buttons=0):
        self._call(
            "Input.dispatchMouseEvent", type=type, x=place[0], y=place[1], buttons=buttons, clickCount=1,
            button="none" if type == "mouseMoved" and not buttons else "left",
        )  # fmt: skip

    def pdf(self, file):
        made = self._call("Page.printToPDF", printBackground=True)
        Path(file).write_bytes(base64.b64decode(made["data"]))

    @property
    def requests(self):
        """Addresses that the page asked for, but for its own data."""
        asked = [
            e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in asked if not url.startswith("data:")]

    @property
    def complaints(self):
        """What the console says, and errors."""
        names = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [e["params"] for e in self.events if e["method"] in names]

    def close(self):
        with contextlib.suppress(OSError):
            os.close(self._to)
            os.close(self._from)
        self._process.terminate()
        self._process.wait(20)

    def _call(self, method, session=True, **params):
        self._number += 1
        number, message = self._number, {"id": self._number, "method": method, "params": params}
        if session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        answer = {}

        def answered():
            found = [e for e in self.events if e.get("id") == number]
            answer.update(found[0] if found else {})
            return bool(found)

        self.events = [e for e in self.events if "id" not in e]
        self._until(answered)
        assert "error" not in answer, answer
        return answer["result"]

    def _until(self, done, seconds=60):
        end = time.monotonic() + seconds
        while not done():
            left = end - time.monotonic()
            readable = left > 0 and select.select([self._from], [], [], left)[0]
            assert readable, "the browser does not answer"
            self._buffer += os.read(self._from, 1 << 20)
            *whole, self._buffer = self._buffer.split(b"\0")
            for text in whole:
                event = json.loads(text)
                event.setdefault("method", "")
                self.events.append(event)
