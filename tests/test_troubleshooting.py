"""Messages on the page are those of the code."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
MESSAGES = re.findall(
    r"\*\*`(.+?)`\*\*", (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
)


def test_messages_are_in_the_code() -> None:
    source = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "vq_plugin").rglob("*.py"))
    # Texts that are cut into lines, and the parts of them that are put in.
    whole = re.sub(r'"\s*\n\s*f?"', "", source)
    assert len(MESSAGES) > 20
    # An example of what users raise.
    unknown = [m for m in MESSAGES if m not in whole and not m.startswith("raised KeyError")]
    assert not unknown
