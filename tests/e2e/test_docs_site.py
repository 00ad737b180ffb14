"""The documentation site: it builds strictly and offline, its links lead somewhere, and its code runs."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import jax
import pytest

from helpers.docs_code import find_scripts

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PACKAGES = ("baselines", "evaluate", "meta", "tasks", "torch", "weights", "zoo")
PAGES_THAT_RUN = ("faq", "from_adamw", "from_muon", "how_it_works", "precision", "sharding", "start_jax")
SCRIPTS = [
    pytest.param(code, id=f"{name}-{label or 'page'}")
    for name in PAGES_THAT_RUN
    for label, code in find_scripts((DOCS / f"{name}.md").read_text(encoding="utf-8")).items()
]
NO_NETWORK = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}  # nobody listens
LOADED = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src"}
MARKDOWN_LINK = re.compile(r"\]\(([^()\s]+)\)")


class Page(HTMLParser):
    """What a page of the site links to, loads, and can be linked at."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {given[name] or "" for name in ("id", "name") if name in given}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"] or "")
        if tag in LOADED and given.get(LOADED[tag]) and given.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.append(given[LOADED[tag]] or "")


def _build(folder: Path, config: Path = ROOT / "mkdocs.yml") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config)]
    environment = {**os.environ, **NO_NETWORK, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(
        [*command, "--site-dir", str(folder)], capture_output=True, text=True, env=environment, cwd=ROOT
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = _build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def _is_external(address: str) -> bool:
    return bool(urlsplit(address).scheme or urlsplit(address).netloc)


def _find_target(site: Path, page: Path, address: str) -> Path:
    """The file that a relative address of a page, or one from the root as in 404.html, leads to."""
    path = unquote(urlsplit(address).path)
    target = site / path.lstrip("/") if path.startswith("/") else page.parent / path if path else page
    return (target / "index.html" if target.is_dir() else target).resolve()


def test_pages_load_nothing_from_the_network(site: Path, pages: dict[Path, Page]) -> None:
    assert len(pages) > 30
    external = {address for page in pages.values() for address in page.loaded if _is_external(address)}
    assert external == set()
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", style.read_text(encoding="utf-8")), (
            style
        )
    for path, page in pages.items():
        for address in page.loaded:
            assert _find_target(site, path, address).is_file(), (path.name, address)


def test_every_link_and_anchor_resolves(site: Path, pages: dict[Path, Page]) -> None:
    dead = []
    for path, page in pages.items():
        for address in filter(lambda a: not _is_external(a), page.links):
            target, anchor = _find_target(site, path, address), unquote(urlsplit(address).fragment)
            if not target.is_file() or (anchor and anchor not in pages[target].anchors | {"__skip"}):
                dead.append((path.relative_to(site).as_posix(), address))
    assert dead == []


def test_links_of_llms_txt_resolve_in_the_site(site: Path) -> None:
    links = MARKDOWN_LINK.findall((site / "llms.txt").read_text(encoding="utf-8"))
    assert len(links) > 20
    assert [link for link in links if not (site / link).is_file()] == []


def test_links_of_the_published_markdown_resolve(site: Path) -> None:
    dead = [
        (path.relative_to(site).as_posix(), link)
        for path in site.rglob("*.md")
        for link in _relative_links(path.read_text(encoding="utf-8"))
        if not (path.parent / link).exists()
    ]
    assert dead == []


def _relative_links(text: str) -> Iterator[str]:
    for link in MARKDOWN_LINK.findall(re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)):
        if not _is_external(link) and not link.startswith("#"):
            yield link.partition("#")[0]


def test_links_resolve_in_a_repository_browser() -> None:
    files = [*DOCS.rglob("*.md"), *ROOT.glob("*.md"), *(ROOT / "src").rglob("*.md")]
    dead = [
        (path.relative_to(ROOT).as_posix(), link)
        for path in files
        for link in _relative_links(path.read_text(encoding="utf-8"))
        if not (path.parent / link).exists()
    ]
    assert dead == []


@pytest.mark.parametrize("package", ["celo2", *(f"celo2.{name}" for name in PACKAGES)])
def test_reference_has_every_public_name(package: str, site: Path, pages: dict[Path, Page]) -> None:
    path = site / "api" / f"{package.rpartition('.')[2]}.html"
    elsewhere = {"__version__", "zoo"}  # a string, and a package with a page of its own
    public = set(importlib.import_module(package).__all__) - (elsewhere if package == "celo2" else set())
    assert {name for name in public if f"{package}.{name}" not in pages[path].anchors} == set()


def test_home_has_the_judging_table_of_the_readme(site: Path) -> None:
    home, readme = (
        (folder / name).read_text(encoding="utf-8")
        for folder, name in (
            (site, "index.md"),
            (ROOT, "README.md"),
        )
    )
    rows = [line for line in readme.splitlines() if line.startswith("| ") and "tasks |" in line]
    assert len(rows) >= 4
    assert all(row in home for row in rows)


@pytest.mark.parametrize(
    "link", ["nowhere.md", "pytorch.md#nowhere", "../src/nowhere.py", "/pytorch.md"], ids=str
)
def test_a_broken_link_ends_the_build(link: str, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Home\n\n[broken]({link}) [whole](pytorch.md#speed)\n")
    (tmp_path / "docs" / "pytorch.md").write_text("# PyTorch\n\n## Speed\n")
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    validation = text[text.index("validation:") : text.index("# Pages without")]
    (tmp_path / "mkdocs.yml").write_text(f"site_name: test\nplugins: []\n{validation}")
    done = _build(tmp_path / "site", tmp_path / "mkdocs.yml")
    assert done.returncode == 1
    assert "Aborted with 1 warnings in strict mode" in done.stdout + done.stderr


@pytest.mark.parametrize("code", SCRIPTS)
def test_code_of_a_page_runs(code: str, standard_promotion: None, capsys: pytest.CaptureFixture) -> None:
    """As a reader's own program, with JAX's usual promotion of ranks and dtypes."""
    with jax.numpy_rank_promotion("allow"):
        exec(compile(code, "page", "exec"), {"__name__": "page"})
    assert capsys.readouterr().err == ""
