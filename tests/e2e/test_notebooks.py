"""The notebooks run from top to bottom, and are stored as they ran."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MAX_BYTES = 300_000  # what a repository browser shows at once
ABSOLUTE = re.compile(r"(?<![\w.:/<])/[\w.-]+/[\w.-]+|[A-Z]:\\\w")  # not the path of an address

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def _load(path: Path):
    notebook = nbformat.read(path, as_version=4)
    return notebook, [cell for cell in notebook.cells if cell.cell_type == "code"]


@each_notebook
def test_a_notebook_runs_and_leaves_nothing_behind(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook, (setup, *_) = _load(path)
    assert setup.source.count("QUICK = False") == 1
    setup.source = setup.source.replace("QUICK = False", "QUICK = True")
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):  # not the user's own
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    folder = tmp_path / "notebooks"
    folder.mkdir()
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()  # raises where a cell does
    _, cells = _load(path)
    ran = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [bool(cell.outputs) for cell in ran] == [bool(cell.outputs) for cell in cells]
    assert not list(folder.iterdir())


@each_notebook
def test_a_stored_notebook_is_complete_and_shows_no_errors_or_paths(path: Path) -> None:
    notebook, cells = _load(path)
    nbformat.validate(notebook)
    assert path.stat().st_size < MAX_BYTES
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [
        output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"
    ]
    texts = [cell.source for cell in notebook.cells]
    texts += [output.get("text", "") for output in outputs]
    texts += [
        text
        for output in outputs
        for kind, text in output.get("data", {}).items()
        if kind.startswith("text/")
    ]
    assert not [found for text in texts for found in ABSOLUTE.findall(text)]


def test_the_readme_lists_every_notebook() -> None:
    listed = re.findall(r"\]\((\w+\.ipynb)\)", (FOLDER / "README.md").read_text())
    assert sorted(listed) == [path.name for path in NOTEBOOKS]
    assert NOTEBOOKS
