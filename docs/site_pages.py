"""What the site needs beside docs/: pages of the repository's root, and links between the two.

A link to a page becomes one on the site. A link to another file of the repository becomes its name:
the site does not hold it. A link to a file that is not there is an error.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "REPRODUCIBILITY.md": "reproducibility.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changes.md",
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of the root."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **options: Any) -> str:
    """Point the links of a page to where things are on the site."""
    at = page.file.src_uri
    origin = next((source for source, there in PAGES.items() if there == at), f"docs/{at}")

    def moved(match: re.Match[str]) -> str:
        mark, text, target, anchor = match.groups("")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
        if not (ROOT / path).exists():
            raise PluginError(f"{origin}: links to {target}, which is not there.")
        there = PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else "")
        if not there or not (mark or there.endswith(".md")):
            return text if "`" in text else f"`{text}`"
        return f"{mark}[{text}]({posixpath.relpath(there, posixpath.dirname(at) or '.')}{anchor})"

    return LINK.sub(moved, markdown)
