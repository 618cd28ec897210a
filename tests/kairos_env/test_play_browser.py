"""The page of `kairos play` in a real browser, where there is one."""

import os
import threading
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from small_worlds import plain

from kairos_env.play import Session
from kairos_env.play_server import PlayServer
from kairos_env.worlds import load_world

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

STEPS = "Number(document.body?.dataset.steps)"
# KAIROS_SCREENSHOT=FILE keeps a picture of the default world's page.
SCREENSHOT = os.environ.get("KAIROS_SCREENSHOT")


@pytest.fixture
def server():
    if SCREENSHOT:
        server = PlayServer(lambda: Session(load_world()))
    else:
        server = PlayServer(lambda: Session(plain(), truth=False))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.close()


@pytest.fixture
def browser(tmp_path):
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.close()


def test_keys_drive_the_dream_for_fifty_steps(server, browser):
    browser.call("Page.navigate", url=server.url)
    browser.wait(f"{STEPS} === 0 && document.querySelector('#dream img').complete")
    browser.run("document.getElementById('speed').value = 2")
    shown = "document.querySelector('#dream img').src"
    first = browser.run(shown)
    for key, until in (("ArrowRight", 20), ("ArrowUp", 40), ("ArrowLeft", 50)):
        browser.key("keyDown", key)
        browser.wait(f"{STEPS} >= {until}")
        browser.key("keyUp", key)
    browser.key("keyDown", " ")
    browser.key("keyUp", " ")
    assert browser.run("document.getElementById('run').getAttribute('aria-pressed')") == "false"
    assert browser.run(shown) != first
    assert browser.run("document.querySelector('#dream img').naturalWidth") == 64
    assert browser.run("document.getElementById('trouble').textContent") == ""
    browser.run("document.getElementById('fork').click()")
    browser.wait("document.querySelectorAll('#forks img').length === 3")
    if SCREENSHOT:
        browser.screenshot(Path(SCREENSHOT))


def test_keeping_and_going_back(server, browser):
    browser.call("Page.navigate", url=server.url)
    browser.wait(f"{STEPS} === 0")
    assert browser.run("document.getElementById('back').disabled")
    browser.run("document.getElementById('keep').click()")
    browser.wait("!document.getElementById('back').disabled")
    browser.run("document.getElementById('run').click()")
    browser.wait(f"{STEPS} >= 3")
    browser.run("document.getElementById('run').click()")
    browser.run("document.getElementById('back').click()")
    browser.wait(f"{STEPS} === 0")
