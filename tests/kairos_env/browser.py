"""Headless Chromium over its debugging pipe: JSON messages with a NUL behind, no package needed."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import time

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
PATIENCE = 60.0


class Browser:
    """One page."""

    def __init__(self, profile, *, width=1000, height=1080):
        read, to_write = os.pipe()
        to_read, write = os.pipe()
        flags = (
            "--headless=new --no-sandbox --disable-gpu --remote-debugging-pipe --no-first-run "
            f"--disable-dev-shm-usage --user-data-dir={profile} --window-size={width},{height}"
        )
        self.process = subprocess.Popen(
            # the pipe's ends are file descriptors 3 and 4 by definition
            ["bash", "-c", f"exec {CHROMIUM} {flags} about:blank 3<&{read} 4>&{write}"],
            pass_fds=(read, write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read)
        os.close(write)
        self._out, self._in = to_write, to_read
        self._left = b""
        self._numbers = itertools.count(1)
        self.session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]

    def call(self, method, **params):
        """Send a command and wait for its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def run(self, script):
        """The value of an expression in the page."""
        told = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def wait(self, script):
        """Until an expression is true."""
        until = time.monotonic() + PATIENCE
        while not self.run(script):
            assert time.monotonic() < until, f"{script} did not become true"
            time.sleep(0.05)

    def key(self, kind, key):
        """kind: keyDown or keyUp."""
        self.call("Input.dispatchKeyEvent", type=kind, key=key)

    def screenshot(self, path):
        """Write a PNG."""
        told = self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(told["data"]))

    def close(self):
        """End the browser that was started here."""
        self.session = None
        try:
            self.call("Browser.close")
        finally:
            self.process.wait(PATIENCE)
            os.close(self._out)
            os.close(self._in)

    def _receive(self):
        while b"\0" not in self._left:
            part = os.read(self._in, 1 << 20)
            assert part, "the browser ended"
            self._left += part
        message, _, self._left = self._left.partition(b"\0")
        return json.loads(message)
