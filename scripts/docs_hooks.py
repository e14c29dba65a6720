"""What mkdocs is told beyond mkdocs.yml.

Links that lead out of docs/ name a file of the repository, which must exist. Tests that a page names as its proof, in
brackets, are no links.
"""

from __future__ import annotations

import pathlib
import re
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent
_OUT = re.compile(r"\[([^\]]+)\]\((\.\./[^)#]+)(?:#[^)]*)?\)")

_TEST = re.compile(r"\[(test_\w+)\]")


def on_page_markdown(markdown: str, /, *, page: Any, **_: Any) -> str:
    """Put names in the place of links that the site cannot follow.

    Raises:
        FileNotFoundError: there is no such file.
    """
    folder = (ROOT / "docs" / page.file.src_uri).parent

    def named(link: re.Match[str]) -> str:
        target = (folder / link[2]).resolve()
        if target.is_relative_to(ROOT / "docs"):
            return link[0]
        if not target.exists():
            raise FileNotFoundError(f"docs/{page.file.src_uri} links to {link[2]}, which does not exist")
        path = target.relative_to(ROOT).as_posix()
        return link[1] if path in link[1] else f"{link[1]} (`{path}`)"

    return _TEST.sub(r"`\1`", _OUT.sub(named, markdown))
