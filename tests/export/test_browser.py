"""The page that reads drawn digits, in a real browser: onnxruntime-web runs the portable file."""

import math
import shutil
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from integration.browser.build import build

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

Stroke = list[tuple[float, float]]

# In a field of 1 by 1, from its upper left corner.
DIGITS: dict[int, list[Stroke]] = {
    0: [[(0.5 + 0.2 * math.sin(t / 4), 0.5 - 0.3 * math.cos(t / 4)) for t in range(26)]],
    1: [[(0.5, 0.2), (0.5, 0.8)]],
    4: [[(0.5, 0.2), (0.3, 0.55), (0.7, 0.55)], [(0.6, 0.4), (0.6, 0.8)]],
    3: [
        [
            (0.35, 0.25),
            (0.6, 0.22),
            (0.6, 0.4),
            (0.45, 0.48),
            (0.65, 0.6),
            (0.6, 0.78),
            (0.32, 0.75),
        ]
    ],
    7: [[(0.3, 0.2), (0.7, 0.2), (0.45, 0.8)], [(0.35, 0.5), (0.65, 0.5)]],
}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page, served."""
    if shutil.which("npm") is None:
        pytest.skip("no npm on the PATH")
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("page")
    build(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def draw(page: "Page", strokes: list[Stroke]) -> None:
    box = page.locator("#pad").bounding_box()
    assert box is not None
    for stroke in strokes:
        before = page.evaluate("document.body.dataset.read ?? 0")
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
        page.mouse.move(*places[0])
        page.mouse.down()
        for place in places[1:]:
            page.mouse.move(*place, steps=4)
        page.mouse.up()
        page.wait_for_function(f"document.body.dataset.read > {before}")


def test_drawn_digits_are_read(browser: "Browser", address: str) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    faults: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_selector("body[data-ready]", timeout=120_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for digit, strokes in DIGITS.items():
        draw(page, strokes)
        assert page.locator("#digit").inner_text() == str(digit)
        assert page.locator("#compressed td").nth(1).inner_text() == str(digit)
        page.get_by_role("button", name="Clear").click()
        assert page.locator("#digit").inner_text() == "–"
    sizes = [
        float(page.locator(f"#{name} td").first.inner_text().removesuffix(" kB"))
        for name in ("compressed", "float")
    ]
    assert sizes[0] < sizes[1] / 20
    assert faults == []
    assert {url.startswith((address, "data:", "blob:")) for url in asked} == {True}
    page.close()
