"""What runs leave is published: tables in pages, links, pictures."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from integration.benchmarks.harness import Table
from integration.benchmarks.publish import PAGES, take, with_tables
from integration.benchmarks.published import Published
from integration.benchmarks.summaries import SUMMARIES

ROOT = Path(__file__).parents[2]


def test_publish_takes_runs_that_have_a_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, folder = tmp_path / "runs", tmp_path / "docs"
    runs.mkdir()
    folder.mkdir()
    (folder / "fit.txt").write_text("old\n")
    (folder / "kept.txt").write_text("kept\n")
    for name in ("fit", "new"):
        run = {"settings": {"quick": False}, "printed": "table"}
        (runs / f"{name}.json").write_text(json.dumps(run))
    take(runs, folder)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "fit.txt": "table\n", "kept.txt": "kept\n",
    }  # fmt: skip
    assert "new.txt" in capsys.readouterr().out


def test_publish_refuses_tiny_sizes(tmp_path: Path) -> None:
    (tmp_path / "fit.txt").touch()
    (tmp_path / "fit.json").write_text(json.dumps({"settings": {"quick": True}}))
    with pytest.raises(SystemExit, match="--quick"):
        take(tmp_path, tmp_path)


def test_a_printed_table_is_read_back() -> None:
    table = Table("Title, and more", {"name": "", "a": ".1f", "long name": "d", "note": ""})
    table.rows = [
        {"name": "one of two words", "a": 1.25, "long name": 7},
        {"name": "x", "long name": 123_456_789, "note": "its own"},
    ]
    run = Published("run", f"## Other\nk\n-\n1\n\n{table}\nnote: ends here\n\n## Bounds\n")
    assert run.table("Title") == [
        {"name": "one of two words", "a": "1.2", "long name": "7", "note": ""},
        {"name": "x", "a": "", "long name": "123456789", "note": "its own"},
    ]
    with pytest.raises(ValueError, match=r"run\.txt has no table"):
        run.table("Nothing")


def test_the_tables_of_the_pages_are_those_of_the_published_runs() -> None:
    pages = {path.name: path.read_text(encoding="utf-8") for path in PAGES}
    assert {name: with_tables(page, SUMMARIES) for name, page in pages.items()} == pages
    for name in SUMMARIES:
        assert f"<!-- {name} -->\n| " in pages["benchmarks.md"]
    # Where people choose they find the same table.
    assert all("<!-- zoo -->\n| " in page for page in pages.values())


def test_the_page_shows_every_picture_and_links_every_run() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    files = {path.name for path in (ROOT / "docs" / "benchmarks").iterdir()}
    assert set(re.findall(r"\(benchmarks/([^)]+)\)", page)) == files


def test_pictures_are_the_same_every_time_and_follow_light_and_dark() -> None:
    pytest.importorskip("matplotlib", reason="pictures are drawn by matplotlib")
    from integration.benchmarks.pictures import PICTURES, svg

    for name, draw in PICTURES.items():
        picture = svg(draw)
        assert picture == svg(draw), name
        assert "prefers-color-scheme: dark" in picture
        ElementTree.fromstring(picture)
        assert (ROOT / "docs" / "benchmarks" / f"{name}.svg").exists()
