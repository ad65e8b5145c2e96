"""A hook of mkdocs: what a page links to outside of docs/ becomes its path in the repository."""

import re
from typing import Any

LINK = re.compile(r"\[([^\]]+)\]\(\.\./([^)]+)\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """``[text](../path)`` as text and path."""
    return LINK.sub(r"\1 (`\2`)", markdown)
