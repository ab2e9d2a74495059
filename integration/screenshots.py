"""Pages as a browser shows them, on a desktop, a tablet and a phone, light and dark.

    python -m integration.screenshots docs/pictures runs/digits/report.html
    python -m integration.screenshots shots site/index.html site/quickstart/index.html --whole

Each PAGE becomes PAGE_desktop_light.png and so on in FOLDER; without --whole, what a window shows
first. The docs show, as on a tablet, the report of `vq-plugin tune recipes/digits_confidence.yaml`.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

SIZES = {"desktop": (1280, 800), "tablet": (820, 640), "phone": (390, 844)}


def name_of(page: Path) -> str:
    return page.parent.name if page.stem == "index" else page.stem


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("pages", nargs="+", type=Path, metavar="PAGE", help="HTML files")
    parser.add_argument("--whole", action="store_true", help="down to the end of the page")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    browsers = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    options.folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=next(filter(None, browsers), None), args=["--no-sandbox"]
        )
        for page in options.pages:
            for size, (width, height) in SIZES.items():
                for scheme in ("light", "dark"):
                    shown = chromium.new_page(
                        viewport={"width": width, "height": height}, color_scheme=scheme
                    )
                    shown.goto(page.resolve().as_uri())
                    path = options.folder / f"{name_of(page)}_{size}_{scheme}.png"
                    shown.screenshot(path=path, full_page=options.whole)
                    shown.close()
                    print(path)
        chromium.close()


if __name__ == "__main__":
    main()
