"""Hooks for the documentation site: adds pages from files outside docs/, and rewrites links.

MkDocs calls these functions (`hooks` in mkdocs.yml). Pages link to files of the repository, so that the links
work in a repository browser; the hooks rewrite them to the site's pages. `<!-- README.md: NAME -->` in a page
is replaced with the part of README.md between `<!-- region NAME -->` and `<!-- endregion -->`. `Examples` is
for the API pages, which mkdocstrings makes.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import griffe
from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
README = "README.md"
EXAMPLES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "examples").rglob("*.py"))
PAGES = {  # file of the repository → page of the site
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "LICENSE": "licence.md",
    "NOTICE": "notices.md",
    README: "index.md",
    "src/celo2/pretrained/celo2.md": "weights/celo2.md",
    "src/celo2/pretrained/celo2-base.md": "weights/celo2-base.md",
    "examples/README.md": "examples/index.md",
    **{name: name.removesuffix(".py") + ".md" for name in EXAMPLES},
}
FILES = {page: file for file, page in PAGES.items() if file != README}
REGION = re.compile(r"<!-- region (\S+) -->\n(.*?)\n<!-- endregion -->", re.DOTALL)
PLACE = re.compile(r"<!-- README\.md: (\S+) -->")
LINK = re.compile(r"(?<=\]\()([^()\s#:]+)(?=[)#])")
EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)


class Examples(griffe.Extension):
    """Renders a docstring's `Example` section as code; Griffe only knows `Examples`."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Renames the section."""
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub("Examples:", obj.docstring.value)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made from files outside docs/."""
    for page, file in FILES.items():
        files.append(File.generated(config, page, content=_make_page(file)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Inserts the README's regions into a page, rewrites its links, and publishes its Markdown."""
    del files
    place = page.file.src_uri
    markdown = lead_links(markdown, FILES.get(place, f"docs/{place}"), place)
    regions = dict(REGION.findall((ROOT / README).read_text(encoding="utf-8")))
    markdown = PLACE.sub(lambda found: lead_links(regions[found[1]], README, place), markdown)
    path = Path(config.site_dir, place)  # beside the page, for readers of llms.txt
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(markdown, encoding="utf-8")
    return markdown


def lead_links(markdown: str, file: str, page: str) -> str:
    """Rewrites the relative links in a repository file for its page on the site.

    Args:
        markdown: The text; fenced blocks and links to anything but repository files are left unchanged.
        file: The file's path in the repository.
        page: The page's path on the site, as MkDocs names sources.
    """

    def lead(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(file), found[1]))
        if not (ROOT / target).is_file():
            return found[1]
        uri = PAGES.get(target) or os.path.relpath(target, "docs")
        return posixpath.relpath(uri, posixpath.dirname(page) or ".")

    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [LINK.sub(lead, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, LINK.sub(lead, markdown[end:])])


def _make_page(file: str) -> str:
    text = (ROOT / file).read_text(encoding="utf-8")
    if file.endswith(".md"):
        return text
    if file.endswith(".py"):
        return f"# {Path(file).name}\n\n```python\n{text}```\n"
    title = {"LICENSE": "Licence", "NOTICE": "Notices"}[file]
    return f"# {title}\n\n```text\n{text.strip()}\n```\n"
