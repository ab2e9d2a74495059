"""Hooks of the documentation build."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):(<code>)~?")
_EXAMPLE = re.compile(r"^( *)Example:$", re.MULTILINE)
# Of what follows as a block of its own, as Sphinx has it.
_BLOCK = re.compile(r"::$", re.MULTILINE)


def on_page_content(html: str, **_: Any) -> str:
    """Drops the Sphinx roles of docstrings, which Markdown would show as they stand."""
    return _ROLE.sub(r"\1", html)


class Examples(griffe.Extension):
    """Shows examples of docstrings as code: under any other title they are quoted text."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Gives the section the title that griffe knows."""
        if obj.docstring is not None:
            examples = _EXAMPLE.sub(r"\1Examples:", obj.docstring.value)
            obj.docstring.value = _BLOCK.sub(":", examples)
