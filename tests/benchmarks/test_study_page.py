"""The report in a real browser, where there is one.

KAIROS_STUDY=FOLDER looks at the report of a study that was run, and keeps pictures of it in
docs/images.
"""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "kairos_env"))
from browser import CHROMIUM, Browser
from made_study import made_document

from kairos_env.benchmarks.study.figures import figures
from kairos_env.benchmarks.study.films import Clip, beside
from kairos_env.benchmarks.study.report import write_page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

RUN = os.environ.get("KAIROS_STUDY")
IMAGES = Path(__file__).parents[2] / "docs" / "images"
WIDTH = "document.documentElement.scrollWidth"


class Watched(Browser):
    """Keeps what the page complains of."""

    def __init__(self, *args, **kwargs):
        self.complaints = []
        super().__init__(*args, **kwargs)

    def _receive(self):
        message = super()._receive()
        if message.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown"):
            self.complaints.append(message)
        return message


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    if RUN:
        return Path(RUN) / "report.html"
    path = tmp_path_factory.mktemp("page") / "report.html"
    content = made_document()
    frames = np.zeros((3, 64, 64, 3), np.uint8)
    clip = Clip("expert", ("truth", "dream"), beside([frames, frames[:2]]), 6.25)
    write_page(path, content, figures(content), acted=[clip])
    return path


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "light"), (390, "dark")])
def test_the_report_opens_without_errors_and_fits(page, tmp_path, width, theme):
    browser = Watched(tmp_path / "profile", width=width, height=1600)
    try:
        browser.call("Runtime.enable")
        browser.call("Log.enable")
        browser.call("Page.enable")
        media = [{"name": "prefers-color-scheme", "value": theme}]
        browser.call("Emulation.setEmulatedMedia", features=media)
        browser.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=1600,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        browser.call("Page.navigate", url=page.as_uri())
        browser.wait("document.readyState === 'complete' && document.images.length > 0")
        browser.run("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
        browser.wait("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        assert browser.run(WIDTH) <= width  # nothing sticks out sideways
        assert browser.run("document.querySelectorAll('svg').length") >= 4
        assert not browser.complaints
        if RUN:
            browser.screenshot(IMAGES / f"study-report-{width}-{theme}.png")
    finally:
        browser.close()
