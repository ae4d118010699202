"""A headless Chromium by its DevTools protocol, over a pipe: no driver, no port, no network.

    with Browser(find_chromium(), profile_folder) as browser:
        page = browser.open("file:///tmp/report.html", width=1280, height=900, dark=True)
        page.picture(Path("report.png"))

Chromium talks JSON over file descriptors 3 and 4, each message ended by a zero byte (`--remote-debugging-pipe`).
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--remote-debugging-pipe",
)
MARGIN = 16  # around the picture of an element
PATIENCE_S = 120.0  # for one answer; a machine that is busy may be slow to start a browser


def find_chromium() -> str | None:
    """The first of NAMES on the path; None where there is no Chromium."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One Chromium with a profile of its own. Ends the process that it started, and no other."""

    def __init__(self, program: str, profile: Path) -> None:
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        # Numbers from 10 on, so that neither end is overwritten by the other's place.
        to_read, to_write = _far(to_read), _far(to_write)

        def place() -> None:
            os.dup2(to_read, 3)
            os.dup2(to_write, 4)

        # What Python opens is not inherited anyway, but for the two that are placed.
        self._process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=place,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._count, self._rest = 0, b""
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE_S)
        os.close(self._read)
        os.close(self._write)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """One command and its result; events that come before it are kept. Raises RuntimeError for a refusal."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE_S
        while b"\0" not in self._rest:
            if not select.select([self._read], [], [], max(0.0, end - time.monotonic()))[0]:
                raise RuntimeError(f"Chromium did not answer within {PATIENCE_S:g} s")
            got = os.read(self._read, 1 << 20)
            if not got:
                raise RuntimeError("Chromium ended")
            self._rest += got
        first, self._rest = self._rest.split(b"\0", 1)
        return dict(json.loads(first))

    def open(self, address: str, *, width: int, height: int, dark: bool = False, scale: float = 1.0) -> Page:
        """A page of that size, loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, str(session))
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
        page.call("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        page.call("Emulation.setEmulatedMedia", features=features)
        page.call("Page.navigate", url=address)
        page.wait("document.readyState === 'complete' && location.href !== 'about:blank'")
        return page


class Page:
    """One loaded page."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command to this page."""
        return self._browser.call(method, self._session, **parameters)

    def events(self, method: str) -> list[dict[str, Any]]:
        """What it has reported of that kind so far."""
        mine = (one for one in self._browser.events if one.get("sessionId") == self._session)
        return [dict(one["params"]) for one in mine if one["method"] == method]

    def value(self, script: str) -> Any:
        """What an expression comes to. Raises RuntimeError where it throws."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails'].get('text')}")
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until an expression holds. Raises RuntimeError where it does not in time."""
        end = time.monotonic() + PATIENCE_S
        while not self.value(condition):
            if time.monotonic() > end:
                raise RuntimeError(f"{condition}: not within {PATIENCE_S:g} s")
            time.sleep(0.05)

    def press(self, key: str, code: int, *, shift: bool = False) -> None:
        """A key, down and up; `code` is its virtual key code."""
        given = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown", **given, **({"text": "\r"} if key == "Enter" else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **given)

    def picture(self, path: Path, *, selector: str | None = None, whole: bool = False) -> None:
        """A PNG of what is seen, of the whole page, or of the first element that a selector names."""
        given: dict[str, Any] = {}
        if selector is not None:
            place = "const b = e.getBoundingClientRect(); return [b.x + scrollX, b.y + scrollY, b.width, b.height]"
            x, y, width, height = self.value(f"(e => {{{place}}})(document.querySelector({json.dumps(selector)}))")
            x, y, width, height = x - MARGIN, y - MARGIN, width + 2 * MARGIN, height + 2 * MARGIN
            given["clip"] = {"x": max(x, 0), "y": max(y, 0), "width": width, "height": height, "scale": 1}
        elif whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            given["clip"] = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=bool(given), **given)
        path.write_bytes(base64.b64decode(shot["data"]))

    def printed(self, path: Path) -> None:
        """The page as a PDF, as it would be printed."""
        sheet = self.call("Page.printToPDF", printBackground=True, paperWidth=8.27, paperHeight=11.69)
        path.write_bytes(base64.b64decode(sheet["data"]))


def _far(descriptor: int) -> int:
    """The same end of a pipe under a number that is out of the way."""
    import fcntl

    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return moved
