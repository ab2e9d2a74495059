"""Hooks of the documentation build."""

import re
from typing import Any

_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):(<code>)~?")


def on_page_content(html: str, **_: Any) -> str:
    """Drops the Sphinx roles of docstrings, which Markdown would show as they stand."""
    return _ROLE.sub(r"\1", html)
