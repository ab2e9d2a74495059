"""``report.html``: read as text, and looked at in a real browser."""

import re
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import pytest

import vq_plugin.tuning.report as report_module
from tests.tuning.report.conftest import passing
from vq_plugin.tuning.report import build_report, format_result, render_page, write_report
from vq_plugin.tuning.report.charts import tradeoff_chart
from vq_plugin.tuning.result import TuneResult

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

KINDS = (
    "passed", "missed", "missed on the test split", "no trials", "no intervals", "no test split",
    "absolute, with confidence", "unsure", "100 layers", "nasty names", "one trial", "all failed",
    "left in float", "exports",
)  # fmt: skip
DESKTOP, PHONE = (1200, 800), (360, 640)
STYLE = Path(report_module.__file__).parent / "templates" / "page.css"

SMALLEST_TEXT = """() => {
  const sizes = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || element.closest("title")) continue;
    sizes.push(parseFloat(getComputedStyle(element).fontSize));
    // Where a drawing is scaled, its text is smaller than its style says.
    if (element.ownerSVGElement) sizes.push(element.getBoundingClientRect().height);
  }
  return Math.min(...sizes);
}"""
OVERLAPS = """() => [...document.querySelectorAll(".plot > svg")].flatMap(chart => {
  const found = [];
  for (const kind of ["left", "below"]) {
    const boxes = [...chart.querySelectorAll(`text.${kind}`)].map(t => t.getBoundingClientRect());
    boxes.forEach((a, i) => boxes.slice(i + 1).forEach(b => {
      if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3
          && b.top < a.bottom - 3) found.push(chart.getAttribute("aria-label"));
    }));
  }
  return found;
})"""


def page_of(result: TuneResult) -> str:
    return render_page(build_report(result))


@pytest.mark.parametrize("kind", KINDS)
def test_it_loads_and_runs_nothing(results: dict[str, TuneResult], kind: str) -> None:
    page = page_of(results[kind])
    assert "default-src 'none'" in page
    assert not re.search(r"<(script|img|iframe|object|embed|base|form)\b", page)
    page = re.sub(r"&lt;.*?&gt;", "", page)
    assert not re.search(r"\son\w+\s*=", page)
    assert set(re.findall(r'(?:href|src|url)\s*[=(]\s*"?([^"\s>)]*)', page)) <= {"data:,"}
    assert not re.search(r"\b(None|nan|inf)\b", page.replace("returned nan", ""))


def test_names_and_texts_are_inert(results: dict[str, TuneResult], tmp_path: Path) -> None:
    recipe = tmp_path / "evil.yaml"
    recipe.write_text("</pre><script>alert(1)</script> {{ 7 * 7 }} {% raw %}\n", encoding="utf-8")
    page = render_page(build_report(results["nasty names"], recipe=recipe))
    assert "<script" not in page
    assert "&lt;/pre&gt;&lt;script&gt;alert(1)&lt;/script&gt; {{ 7 * 7 }} {% raw %}\n" in page
    assert "&lt;b&gt;max_trials&lt;/b&gt;" in page


def test_every_trial_is_a_mark_that_names_its_settings(results: dict[str, TuneResult]) -> None:
    page = page_of(results["passed"])
    titles = re.findall(r"<title>(Trial .*?)</title>", page, re.DOTALL)
    assert len(titles) == 25
    for index, trial in enumerate(results["passed"].trials):
        assert titles[index].startswith(f"Trial {index + 1}, ") or "chosen" in titles[-1]
        named = [title for title in titles if title.startswith(f"Trial {index + 1}, ")]
        for name, scheme in trial.schemes.items():
            assert all(f"{name}: {scheme}" in title for title in named)
    assert "and 88 more layers" in page_of(results["100 layers"])


def test_trials_count_from_1_as_in_the_log(results: dict[str, TuneResult]) -> None:
    count = len(results["passed"].trials)
    page, text = page_of(results["passed"]), format_result(results["passed"])
    numbers = [str(number) for number in range(1, count + 1)]
    assert re.findall(r'data-name="#" class="n">(\d+)<', page) == numbers
    assert re.findall(r"^ *(\d+)  +\d", text, re.MULTILINE) == numbers


def test_it_tells_what_is_not_sure_from_what_is_over(results: dict[str, TuneResult]) -> None:
    page = page_of(results["unsure"])
    assert "within it, but not confirmed" in page
    assert re.search(r"<title>Trial 1, unsure: ", page)
    assert "but not confirmed" not in page_of(results["passed"])
    assert "3 from an earlier run" in page_of(results["absolute, with confidence"])


def test_bits_and_bytes_of_every_layer_are_bars(results: dict[str, TuneResult]) -> None:
    page = page_of(results["passed"])
    table = page[page.index('aria-label="Layers"') :]
    rows = re.findall(r'<th scope="row">(.*?)</tr>', table, re.DOTALL)
    assert len(rows) == 5 + 1
    bars = [[float(w) for w in re.findall(r'class="bar" width="([\d.]+)%"', row)] for row in rows]
    assert max(bits for bits, _ in bars[:-1]) == 100
    assert sum(share for *_, share in bars) == pytest.approx(100, abs=0.05)


def test_weights_left_in_float_are_a_table_with_the_reason(results: dict[str, TuneResult]) -> None:
    page = page_of(results["left in float"])
    table = page[page.index("<h2>Left in float</h2>") :]
    for text in ("encoder.in_proj_weight", "123.5 kB", "no candidate", "&lt;b&gt;tail&lt;/b&gt;"):
        assert text in table
    assert "Left in float" not in page_of(results["passed"])


def contrast(first: str, second: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colours_have_contrast_in_light_and_dark() -> None:
    palettes = re.findall(r":root \{(.*?)\}", STYLE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(palettes) == 3  # light, dark, print
    for palette in palettes:
        colours = dict(re.findall(r"--(\w+): (#\w{6});", palette))
        for ground in ("page", "card"):
            for name in ("text", "quiet", "held", "over", "good", "bad", "failed"):
                assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)


@pytest.fixture(scope="module")
def files(
    results: dict[str, TuneResult], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    recipe = folder / "recipe.yaml"
    recipe.write_text("model: " + "a" * 300 + "\n<script>alert(1)</script>\n", encoding="utf-8")
    return {
        kind: write_report(folder / kind, result, recipe=recipe).page
        for kind, result in results.items()
    }


def opened(browser: "Browser", file: Path, size: tuple[int, int], **context: str) -> "Page":
    """The page after it was loaded; what the console or the network saw is on ``page.seen``."""
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, **context)  # type: ignore[arg-type]
    seen: list[str] = []
    page.on("console", lambda message: seen.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: seen.append(f"error: {error}"))
    page.on("dialog", lambda dialog: seen.append(f"dialog: {dialog.message}"))
    page.on(
        "request",
        lambda request: (
            request.url in (file.as_uri(), "data:,") or seen.append(f"request: {request.url}")
        ),
    )
    page.goto(file.as_uri())
    assert seen == []
    return page


def test_a_server_is_asked_for_the_page_alone(browser: "Browser", files: dict[str, Path]) -> None:
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *_: object) -> None:
            asked.append(self.path)

    handler = partial(Handler, directory=str(files["passed"].parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/report.html", wait_until="networkidle")
        page.close()
        server.shutdown()
    assert asked == ["/report.html"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_in_a_browser(
    browser: "Browser", files: dict[str, Path], kind: str, size: tuple[int, int]
) -> None:
    page = opened(browser, files[kind], size)
    try:
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        assert page.evaluate(SMALLEST_TEXT) >= 12
        assert page.evaluate(OVERLAPS) == []
        verdict = page.locator("h1")
        stopped = "missed" in kind or kind in ("no trials", "all failed", "unsure")
        assert verdict.inner_text().strip() == ("NOT REACHED" if stopped else "PASSED")
        for part in (verdict, page.locator(".sentence").first):
            box = part.bounding_box()
            assert box is not None
            assert box["y"] >= 0
            assert box["y"] + box["height"] <= size[1]
    finally:
        page.close()


def test_dark_and_light(browser: "Browser", files: dict[str, Path]) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        page = opened(browser, files["passed"], DESKTOP, color_scheme=scheme)
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.close()
    assert grounds == ["rgb(255, 255, 255)", "rgb(13, 17, 23)"]


def test_in_print_nothing_is_cut(browser: "Browser", files: dict[str, Path]) -> None:
    page = opened(browser, files["100 layers"], (700, 1000))
    page.emulate_media(media="print")
    cut = page.evaluate(
        '[...document.querySelectorAll(".scroll")].filter(e => e.clientHeight < e.scrollHeight - 1'
        " || e.clientWidth < e.scrollWidth - 1).length"
    )
    assert cut == 0
    page.close()


def test_trials_need_no_scrolling_to_the_side_on_a_phone(
    browser: "Browser", files: dict[str, Path]
) -> None:
    page = opened(browser, files["passed"], PHONE)
    box = page.get_by_role("region", name="Trials")
    assert box.evaluate("box => box.scrollWidth <= box.clientWidth")
    # The header is elsewhere: every number has its name beside it.
    names = (
        box.locator("tbody tr")
        .first.locator("td")
        .evaluate_all("cells => cells.map(cell => getComputedStyle(cell, '::before').content)")
    )
    assert {'"Size"', '"Loss"', '"Change"'} <= set(names)
    assert not {'""', "none"} & set(names)
    page.close()


def test_the_line_of_the_best_trials_stays_within_the_budget() -> None:
    result = passing()
    chart = tradeoff_chart(result)
    assert chart is not None
    assert any(trial.loss > result.budget.limit for trial in result.trials)
    # Downwards, as pictures have it.
    assert chart.line
    assert min(y for _, y in chart.line) >= chart.y.at(result.budget.limit)


def test_tables_scroll_by_keyboard_in_their_own_box(
    browser: "Browser", files: dict[str, Path]
) -> None:
    page = opened(browser, files["passed"], PHONE)
    box = page.get_by_role("region", name="Layers")
    box.focus()
    page.keyboard.press("ArrowRight")
    # Scrolling is animated, and the page's policy forbids wait_for_function, which evaluates text.
    for _ in range(50):
        if page.evaluate("document.activeElement.scrollLeft") > 0:
            break
        page.wait_for_timeout(100)
    assert page.evaluate("document.activeElement.scrollLeft") > 0
    assert page.evaluate("document.documentElement.scrollLeft") == 0
    page.close()
