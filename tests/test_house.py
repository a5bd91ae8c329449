"""What keeps the house in order: import direction, light imports, file sizes, docstrings, declared packages."""

from __future__ import annotations

import ast
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.quick

# Each package may import the ones to its right.
ALLOWED = {
    "pallas_kernels": set(),
    "vo3": {"pallas_kernels"},
    "data_prep": {"vo3", "pallas_kernels"},
    "configs": {"vo3", "pallas_kernels"},
    "launch": {"vo3", "pallas_kernels", "configs", "data_prep"},
}
HOUSE = set(ALLOWED) | {"benchmarks", "tests", "notebooks"}
# vo3.video and vo3.chat describe data: they know no model and no accelerator.
MODEL_FREE = ("vo3/video", "vo3/chat")
KERNEL_BODIES = {"pallas_kernels/splash/forward.py", "pallas_kernels/splash/backward.py"}


def tracked(*patterns: str) -> list[pathlib.Path]:
    """Tracked and new files, as git sees them; every file where the tree is no checkout."""
    found = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if found.returncode == 0:
        return [
            ROOT / name for name in sorted(set(found.stdout.split("\n"))) if (ROOT / name).is_file()
        ]
    return sorted(p for pattern in patterns for p in ROOT.rglob(pattern) if ".venv" not in p.parts)


def imported(path: pathlib.Path) -> list[str]:
    """Dotted names of every absolute import in a file, nested ones included."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def wrong_imports(package: str, names: list[str]) -> list[str]:
    """Those of `names` that point against the direction of imports from inside `package`."""
    forbidden = HOUSE - ALLOWED[package] - {package}
    return [name for name in names if name.split(".")[0] in forbidden]


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_import_direction(package):
    wrong = {
        str(path.relative_to(ROOT)): bad
        for path in tracked(f"{package}/*.py")
        if (bad := wrong_imports(package, imported(path)))
    }
    assert not wrong


def test_import_direction_notices_a_wrong_import():
    assert wrong_imports("pallas_kernels", ["jax.numpy", "vo3.attention"]) == ["vo3.attention"]
    assert wrong_imports("vo3", ["data_prep.stages", "pallas_kernels.visibility"]) == [
        "data_prep.stages"
    ]
    assert wrong_imports("launch", ["configs.rl", "vo3.cli"]) == []


def test_video_and_chat_know_no_model():
    heavy = re.compile(r"^(torch|tensorflow|flax|vo3\.(models|rollout|train|agent|attention))\b")
    wrong = {
        str(path.relative_to(ROOT)): bad
        for folder in MODEL_FREE
        for path in tracked(f"{folder}/*.py")
        if (bad := [name for name in imported(path) if heavy.match(name)])
    }
    assert not wrong


def test_no_runtime_module_imports_torch_or_tensorflow():
    wrong = {
        str(path.relative_to(ROOT)): bad
        for path in tracked("vo3/*.py", "pallas_kernels/*.py")
        if (bad := [n for n in imported(path) if n.split(".")[0] in ("torch", "tensorflow")])
    }
    assert not wrong


def public_modules() -> list[str]:
    """Dotted names of the modules of vo3 and pallas_kernels without a leading underscore."""
    names = []
    for path in tracked("vo3/*.py", "pallas_kernels/*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if not any(part.startswith("_") for part in parts):
            names.append(".".join(parts))
    return names


def test_importing_loads_neither_torch_nor_tensorflow_nor_a_server():
    """For real, in a fresh interpreter, and with what the imported packages import in turn."""
    code = (
        "import importlib, sys\n"
        "for name in ('vo3', 'vo3.cli', 'vo3.video', 'vo3.chat', 'vo3.models', 'vo3.agent', 'pallas_kernels'):\n"
        "    importlib.import_module(name)\n"
        "heavy = {'torch', 'torchvision', 'tensorflow', 'uvicorn', 'starlette', 'fastapi'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "[]"


def test_importing_the_package_alone_is_light():
    code = "import vo3, sys; print(sorted({'jax', 'transformers', 'av'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_files_stay_readable():
    lengths = {
        p.relative_to(ROOT).as_posix(): len(p.read_text().splitlines()) for p in tracked("*.py")
    }
    assert {name: n for name, n in lengths.items() if n > 500 and name not in KERNEL_BODIES} == {}


def test_every_public_module_says_what_it_is():
    silent = [
        str(path.relative_to(ROOT))
        for path in tracked(
            "vo3/*.py", "pallas_kernels/*.py", "data_prep/*.py", "configs/*.py", "launch/*.py"
        )
        if not (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").strip()
    ]
    assert silent == []


def declared() -> dict[str, list[str]]:
    """Requirement names of setup.py by group ("core" and the extras), read without running it."""
    groups: dict[str, list[str]] = {}
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id in ("CORE", "EXTRAS"):
            value = ast.literal_eval(node.value)
            groups |= value if isinstance(value, dict) else {"core": value}
    return {
        group: [re.match(r"[\w.-]+", line).group().lower().replace("_", "-") for line in lines]
        for group, lines in groups.items()
    }


@pytest.mark.parametrize(
    "package",
    [
        "jax",
        "flax",
        "optax",
        "orbax-checkpoint",
        "transformers",
        "tensorflow-datasets",
        "ml-collections",
        "grain",
    ],
)
def test_the_named_packages_are_declared(package):
    assert package in {name for names in declared().values() for name in names}


def test_core_is_light():
    heavy = {
        "torch",
        "torchvision",
        "tensorflow",
        "tensorflow-datasets",
        "grain",
        "pytest",
        "scikit-video",
    }
    assert not heavy & set(declared()["core"])
    assert {"tpu", "cuda", "data", "eval", "serve", "dev"} <= set(declared())


def test_third_party_imports_of_the_runtime_are_declared():
    """What vo3 and pallas_kernels import at the top of a module stands in core; anything else needs an extra."""
    modules = {"PIL": "pillow", "yaml": "pyyaml", "absl": "absl-py", "orbax": "orbax-checkpoint"}
    # Pulled by jax itself.
    given = set(sys.stdlib_module_names) | HOUSE | {"jaxlib", "ml_dtypes", "scipy"}
    # Hosts of vo3.plugins: they import us, and their pins are not ours.
    given |= {"lmms_eval", "vlmeval"}
    core, every = set(declared()["core"]), {n for names in declared().values() for n in names}
    missing = {}
    for path in tracked("vo3/*.py", "pallas_kernels/*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = {
            name.split(".")[0]
            for node in tree.body
            if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0)
            for name in (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
            )
        }
        for names, where in ((top, core), ({n.split(".")[0] for n in imported(path)}, every)):
            lost = {
                n for n in names - given if modules.get(n, n).lower().replace("_", "-") not in where
            }
            # The data and serve rooms are only entered with their extra installed.
            if lost and not (
                where is core and path.relative_to(ROOT).parts[1] in ("data", "serve", "evals")
            ):
                missing[str(path.relative_to(ROOT))] = sorted(lost)
    assert missing == {}


def test_every_package_is_packaged():
    """A folder with Python files under the packaged roots is found by setup.py's include patterns."""
    import setuptools

    found = set(
        setuptools.find_namespace_packages(
            str(ROOT), include=["vo3", "vo3.*", "pallas_kernels", "pallas_kernels.*"]
        )
    )
    folders = {
        ".".join(p.parent.relative_to(ROOT).parts)
        for p in tracked("vo3/*.py", "pallas_kernels/*.py")
    }
    assert folders <= found
    assert all((ROOT / name.replace(".", "/") / "__init__.py").exists() for name in folders)


def test_no_machine_paths_in_tracked_text():
    places = ("work", "root", "farm", "home/[a-z]+", "Users/[a-z]+")
    pattern = re.compile(r"(?<![\w.~-])/(" + "|".join(places) + r")/|\.\./shared")
    hits = []
    for path in tracked():
        if (
            path.suffix in (".png", ".jpg", ".safetensors", ".mp4", ".npz")
            or path.stat().st_size > 1 << 20
        ):
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        hits += [
            f"{path.relative_to(ROOT)}: {line.strip()[:80]}"
            for line in text.splitlines()
            if pattern.search(line)
        ]
    assert hits == []


def test_python_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["ruff"]["target-version"] == "py311"
    assert 'python_requires=">=3.11,<3.14"' in (ROOT / "setup.py").read_text()


def test_make_targets_exist():
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", text, re.M))
    assert {"demo", "test", "soak", "lint", "bench", "clueworld", "clean"} <= targets


def test_make_clean_removes_every_environment():
    text = (ROOT / "Makefile").read_text()
    clean = re.search(r"^clean:.*?\n\trm -rf (.*)", text, re.M).group(1).split()
    assert set(re.findall(r"\.venv-[a-z0-9.]*[a-z0-9](?:-[a-z]+)*", text)) <= set(clean)


def test_changelog_names_the_version():
    import vo3

    text = (ROOT / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in text or f"## [{vo3.__version__}]" in text
