"""The notebooks run from a clean kernel, are kept without outputs, and leave the runtime's jax alone."""

from __future__ import annotations

import importlib.metadata
import pathlib
import re
import subprocess
import sys
import types

import nbformat
import pytest
from etils import epath
from nbclient import NotebookClient

from tests.gcs_fake import fake_gcs
from vo3.evals import runtimes
from vo3.trajectory import Trajectory
from vo3.viewer import gallery

FOLDER = pathlib.Path(__file__).parents[2] / "notebooks"
# As README's badges have it; `make repository` changes it everywhere.
REPOSITORY = re.search(
    r"research\.google\.com/github/([^/]+/[^/]+)/", (FOLDER.parent / "README.md").read_text()
).group(1)
PUBLISHED = "you/vo3" if REPOSITORY.startswith("OWNER/") else REPOSITORY
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / name, as_version=4)


def cell(notebook: nbformat.NotebookNode, name: str) -> nbformat.NotebookNode:
    return next(c for c in notebook.cells if c.id == name)


def run(notebook, folder, monkeypatch, fields) -> dict[str, list]:
    """Executes in `folder` with some fields changed; a cell's outputs by its id."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    form = cell(notebook, "fields")
    for before, after in fields.items():
        assert before in form.source
        form.source = form.source.replace(before, after)
    kernel = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=kernel).execute()
    return {c.id: c.outputs for c in notebook.cells if c.cell_type == "code"}


def said(outputs: list) -> str:
    return "".join(o.text for o in outputs if o.get("name") == "stdout")


def page(outputs: list) -> str:
    (only,) = (o.data["text/html"] for o in outputs if "text/html" in o.get("data", {}))
    return only


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_outputs_are_stripped(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for one in notebook.cells:
        assert not one.get("outputs") and one.get("execution_count") is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_what_all_notebooks_share(path):
    notebook = nbformat.read(path, as_version=4)
    badge = f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/notebooks/{path.name}"
    assert badge in cell(notebook, "about").source
    assert runtimes.table() in cell(notebook, "runtimes").source
    for name in ("install", "devices"):
        assert cell(notebook, name).source == cell(read("evaluate.ipynb"), name).source


def test_the_evaluation_page_has_the_same_table():
    assert runtimes.table() in (FOLDER.parent / "docs" / "evaluation.md").read_text()


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A runtime without vo3, in a folder with a checkout, which a search for modules takes for the package."""
    version = importlib.metadata.version

    def of(name):
        if name == "vo3":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    (tmp_path / "vo3" / "vo3").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.metadata, "version", of)
    return lambda: monkeypatch.setattr(importlib.metadata, "version", version)


@pytest.mark.parametrize("fails", [False, True])
def test_installing_leaves_the_runtimes_jax_alone(fails, bare, tmp_path, monkeypatch):
    """On a runtime without vo3: what pip is given holds every package back that knows the accelerator."""
    calls = []

    def pip(command, check):
        calls.append(command)
        bare()  # installed
        return types.SimpleNamespace(returncode=int(fails))

    monkeypatch.setattr(subprocess, "run", pip)
    source = cell(read("evaluate.ipynb"), "install").source.replace(REPOSITORY, PUBLISHED)
    if fails:
        with pytest.raises(SystemExit, match=r"beside the runtime's jax [\d.]+, which is kept"):
            exec(source, {})
    else:
        exec(source, {})
    (command,) = calls
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert command[-3:] == ["-c", "runtime-constraints.txt", f"vo3[eval,gcs,int8] @ git+https://github.com/{PUBLISHED}"]  # fmt: skip
    held = (tmp_path / "runtime-constraints.txt").read_text().splitlines()
    for name in ("jax", "jaxlib", "numpy"):
        assert f"{name}=={importlib.metadata.version(name)}" in held


def test_a_copy_that_nobody_has_published_says_so(bare):
    source = cell(read("evaluate.ipynb"), "install").source.replace(REPOSITORY, "OWNER/vo3")
    with pytest.raises(SystemExit, match="whoever publishes vo3"):
        exec(source, {})


def test_the_repository_is_written_everywhere(tmp_path):
    """`make repository`, on a copy: first from the placeholder, then from one address to another."""
    root = FOLDER.parent
    (tmp_path / "notebooks").mkdir()
    files = ["README.md", "Makefile", *(f"notebooks/{path.name}" for path in NOTEBOOKS)]
    for file in files:
        (tmp_path / file).write_text((root / file).read_text())
    for address in ("first.one/vo3-x", "another/vo3"):
        subprocess.run(["make", "-s", "repository", f"REPOSITORY={address}"], cwd=tmp_path, check=True)  # fmt: skip
        for file in files:
            if file != "Makefile":
                text = (tmp_path / file).read_text()
                assert text.count(f"/{address}") == (root / file).read_text().count(f"/{REPOSITORY}")  # fmt: skip
                assert f"/{REPOSITORY}" not in text
    wrong = subprocess.run(["make", "-s", "repository"], cwd=tmp_path, capture_output=True, text=True, check=False)  # fmt: skip
    assert wrong.returncode and "REPOSITORY=owner/name" in wrong.stdout


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_drive_and_buckets_are_reached_by_field(path, monkeypatch):
    done = []
    colab = types.ModuleType("google.colab")
    colab.drive = types.SimpleNamespace(mount=lambda at: done.append(at))
    colab.auth = types.SimpleNamespace(authenticate_user=lambda: done.append("signed in"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    monkeypatch.setitem(sys.modules, "google", types.SimpleNamespace(colab=colab))
    notebook = nbformat.read(path, as_version=4)
    source = next(c.source for c in notebook.cells if "def reach" in c.source)
    scope: dict = {}
    exec("def reach" + source.split("def reach")[1].split("\n\n\n")[0], scope)
    scope["reach"]("clueworld", "", "out")
    assert done == []
    scope["reach"]("/content/drive/MyDrive/7B", "gs://bucket/data")
    assert done == ["/content/drive", "signed in"]


def test_a_line_of_a_bucket_is_read_whole(monkeypatch):
    """Trajectories keep every character, also those that str.splitlines takes for the end of a line."""
    monkeypatch.setattr(gallery, "clips_of", lambda said, videos: (said, videos))
    monkeypatch.setattr(Trajectory, "loads", lambda line: line)
    source = cell(read("inspect_trajectory.ipynb"), "get").source
    body = source.split("\ndef read")[1].split("\n\n\n")[0]
    first = source.split("\n\n\n")[0]
    scope = {"TRAJECTORIES": "gs://bucket/run/one.jsonl", "VIDEO": "", "pathlib": pathlib}
    exec(f"{first}\n\n\ndef read{body}", scope)
    with fake_gcs():
        epath.Path("gs://bucket/run/one.jsonl").write_text('{"a": "x\u2028y\x85"}\n{"b": 1}\n')
        for line, said in ((1, '{"a": "x\u2028y\x85"}'), (2, '{"b": 1}')):
            scope["LINE"] = line
            assert scope["read"]() == (said, (said, None))
        scope["LINE"] = 3
        with pytest.raises(SystemExit, match="has 2 lines; LINE is 3"):
            scope["read"]()


def test_results_in_a_bucket_are_shown_and_names_may_have_spaces():
    notebook, pages, commands = read("evaluate.ipynb"), [], []
    scope = {
        "WORKDIR": "gs://bucket/eval", "BENCHMARKS": " mlvu, videomme", "MODES": "tools, direct",
        "pathlib": pathlib, "main": commands.append,
    }  # fmt: skip
    with fake_gcs():
        for name in ("summary.md", "index.html", "view/index.html"):
            epath.Path("gs://bucket/eval", name).write_text(f"this is {name}")
        exec(cell(notebook, "table").source, scope)
        scope["display"] = lambda page: pages.append(page.data)
        for name in ("figures", "conversations"):
            exec(cell(notebook, name).source, scope)
    assert ["this is index.html" in pages[0], "this is view/index.html" in pages[1]] == [True, True]
    (command,) = commands
    assert command[1] == "gs://bucket/eval/mlvu/tools/trajectories.jsonl"
    beside = command[command.index("--beside") + 1]
    assert beside == "gs://bucket/eval/mlvu/direct/trajectories.jsonl"


def test_evaluation_from_a_clean_kernel(tmp_path, monkeypatch):
    """With the fields as they stand, but for one world and two questions."""
    shown = run(
        read("evaluate.ipynb"), tmp_path, monkeypatch, {"WORLDS = 3": "WORLDS = 1", "QUESTIONS = 0": "QUESTIONS = 2"}
    )  # fmt: skip
    assert "vo3 " in said(shown["install"])
    assert "holds clueworld (as stored)" in said(shown["devices"])
    assert "| ClueWorld (part) | direct |" in said(shown["run"])
    (table,) = shown["table"]
    assert "| ClueWorld (part) | tools |" in table.data["text/markdown"]
    assert (
        "ClueWorld" in page(shown["figures"]) and "<svg" not in page(shown["conversations"])[:200]
    )
    assert "Which digit" in page(shown["conversations"])
    lines = (tmp_path / "vo3-eval" / "clueworld" / "tools" / "trajectories.jsonl").read_text()
    assert len(lines.splitlines()) == 2


def test_inspection_from_a_clean_kernel(tmp_path, monkeypatch):
    """First a question is asked, with int8 weights, then its trajectory is read from a file and looked into again."""
    asked = read("inspect_trajectory.ipynb")
    # What it asked is kept, for the second run.
    cell(asked, "get").source += "\npathlib.Path('one.jsonl').write_text(trajectory.dumps())"
    shown = run(asked, tmp_path, monkeypatch, {'WEIGHTS = "as stored"': 'WEIGHTS = "int8"'})
    told = said(shown["get"])
    assert "What is" in told and "answered: " in told
    assert "<iframe" in page(shown["page"]) and "data:image/jpeg" in page(shown["page"])
    assert page(shown["overview"]).count("<figure>") == 32
    assert "64 frames of 56 x 28, 64 tokens" in said(shown["overview"])
    assert "-> looks at" in said(shown["thinks"]) and "cards" in said(shown["thinks"])
    assert "hidden by TDAM" in page(shown["masks"]) and "hide something" in said(shown["masks"])
    parts = dict(line.split() for line in said(shown["reward"]).splitlines()[:5])
    assert parts["format"] == "1.000" and float(parts["total"]) > 0
    again = run(
        read("inspect_trajectory.ipynb"), tmp_path, monkeypatch, {'TRAJECTORIES = ""': 'TRAJECTORIES = "one.jsonl"'}
    )  # fmt: skip
    for name in ("overview", "masks"):
        assert page(again[name]) == page(shown[name])
    for name in ("get", "thinks", "reward"):
        assert said(again[name]) == said(shown[name])
