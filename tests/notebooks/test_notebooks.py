"""The notebooks run from a clean kernel, and are kept without outputs."""

import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = pathlib.Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_outputs_are_stripped(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


def test_evaluation_from_a_clean_kernel(tmp_path, monkeypatch):
    """With the fields as they stand, but for one world and two questions."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    notebook = nbformat.read(FOLDER / "evaluate.ipynb", as_version=4)
    fields = next(cell for cell in notebook.cells if cell.id == "fields")
    for before, after in (("WORLDS = 3", "WORLDS = 1"), ("QUESTIONS = 0", "QUESTIONS = 2")):
        assert before in fields.source
        fields.source = fields.source.replace(before, after)
    kernel = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=kernel).execute()
    shown = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    said = "".join(o.get("text", "") for o in shown["install"] + shown["run"])
    assert "vo3 " in said and "| ClueWorld (part) | direct |" in said
    for name, words in (("figures", "ClueWorld"), ("conversations", "Which digit")):
        pages = [o.data["text/html"] for o in shown[name] if "text/html" in o.get("data", {})]
        assert len(pages) == 1 and words in pages[0]
    lines = (tmp_path / "vo3-eval" / "clueworld" / "tools" / "trajectories.jsonl").read_text()
    assert len(lines.splitlines()) == 2
