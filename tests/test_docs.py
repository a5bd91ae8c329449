"""Every command on README.md and docs/*.md: its own parser takes it as it is written, and a test runs that program.

Launchers are run, as dry runs. What takes longer is run elsewhere, in the tests that `RUN_BY` names.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import doc_commands
import pytest
from doc_commands import ROOT, Wrong

pytestmark = pytest.mark.usefixtures("as_it_was")

_CLI, _LAUNCH = "tests/vo3/test_cli.py", "tests/launch/test_launch.py"
_RUNNER = "tests/vo3/evals/test_runner.py"
# The test that runs each program.
RUN_BY = {
    "vo3 ask": f"{_CLI}::test_a_random_model_is_asked_for_real",
    "vo3 convert": f"{_CLI}::test_convert_there_and_back_is_bitwise",
    "vo3 view": f"{_CLI}::test_view_writes_an_index",
    "vo3 doctor": "tests/vo3/data/test_doctor.py::test_trainable_rows_are_written_as_they_were",
    "vo3 eval": f"{_RUNNER}::test_the_command_end_to_end",
    "vo3 compare": f"{_RUNNER}::test_the_command_end_to_end",
    "vo3 convert-config": "tests/vo3/train/test_convert_config.py::test_the_command_writes_a_config_that_runs",
    "vo3 serve": "tests/vo3/serve/test_command.py::test_it_serves_until_it_is_told_to_end",
    "lmms-eval": "tests/vo3/plugins/test_lmms_eval_host.py::test_lmms_eval_gives_the_same_answers",
    "vo3.chat.importer": "tests/vo3/chat/test_importer.py::test_the_command",
    "vo3.clueworld.bounds": "tests/vo3/clueworld/test_bounds.py::test_the_command_end_to_end",
    "vo3.clueworld.evaluate": "tests/vo3/clueworld/test_evaluate.py::test_evaluation_end_to_end_and_again",
    "vo3.clueworld.gains": "tests/vo3/clueworld/test_gains.py::test_the_command",
    "vo3.clueworld.recipe": "tests/vo3/clueworld/test_baselines.py::test_the_recipe_of_a_baseline",
    "vo3.clueworld.teacher": "tests/vo3/clueworld/test_teacher.py::test_the_command",
    "vo3.clueworld.tables": "tests/vo3/clueworld/test_tables.py::test_the_command",
    "vo3.evals.compile_check": "tests/vo3/evals/test_ask_compile_check.py::test_the_7b_in_int8_fits_sixteen_gigabytes",
    "vo3.evals.runner": f"{_RUNNER}::test_the_module",
    "vo3.plugins.vlmevalkit": "tests/vo3/plugins/test_vlmevalkit_host.py::test_vlmevalkit_gives_the_same_answers",
    "vo3.train.compile_check": "tests/vo3/train/test_compile_check.py::test_the_7b_at_40k_tokens_a_row_fits",
    "vo3.train.grpo": "tests/vo3/train/test_grpo.py::test_rl_zero_on_rows_of_files_and_folders",
    "vo3.train.rl_curves": "tests/vo3/train/test_rl_curves.py::test_the_command",
    "vo3.train.sft": "tests/vo3/train/test_row_feed.py::test_the_command_trains_on_rows_and_exports",
    "data_prep.dialects": "tests/data_prep/test_dialects.py::test_the_command_counts_what_is_lost",
    "data_prep.review": "tests/data_prep/test_review.py::test_the_page_takes_verdicts_which_filter_rows_and_reach_the_report",
    "data_prep.sources.clueworld": "tests/test_docs.py::test_own_data_from_top_to_bottom",
    "data_prep.synthesize": "tests/test_docs.py::test_own_data_from_top_to_bottom",
    "benchmarks.ablate": "tests/vo3/clueworld/test_ablate.py::test_a_grid_end_to_end_and_again",
    "launch/local.sh": f"{_LAUNCH}::test_local_starts_n_processes_with_one_coordinator",
    "launch/render_jobset.py": f"{_LAUNCH}::test_the_manifest_is_yaml_with_every_value_in_its_place",
    "launch/tpu_vm.sh": f"{_LAUNCH}::test_up_is_create_setup_run_in_this_order",
    "launch/xpk.sh": f"{_LAUNCH}::test_xpk_is_given_one_workload",
    "make demo": "tests/vo3/clueworld/test_demo.py::test_the_demo_answers_right_after_looking_where_the_clue_is",
    "make clueworld": "tests/vo3/clueworld/test_baselines.py::test_the_recipe_of_a_baseline",
    "make clueworld-baselines": "tests/vo3/clueworld/test_baselines.py::test_the_recipe_of_a_baseline",
    "make clueworld-pictures": "tests/vo3/clueworld/test_pictures.py::test_the_command",
    "make clueworld-rl": "tests/vo3/train/test_grpo.py::test_the_embedded_model_learns_from_real_videos",
    "make repository": "tests/notebooks/test_notebooks.py::test_the_repository_is_written_everywhere",
    "make ablate": "tests/vo3/clueworld/test_ablate.py::test_a_grid_end_to_end_and_again",
}  # fmt: skip
# Programs that no test runs, and why.
RUN_BY_NONE = {
    "make test": "it runs this",
    "make test-beam": "it runs tests in an environment of their own",
    "make soak": "it runs the tests that take longer",
    "make format": "a linter",
    "make bench": "it measures",
    "pytest": "it runs these tests",
    "pip": "it installs; `make` does on every new machine",
    **dict.fromkeys(doc_commands.FOREIGN, "not ours"),
}


@pytest.fixture
def as_it_was(monkeypatch):
    """Commands of the launchers look for the checkout's interpreter."""
    monkeypatch.setenv("PYTHON", sys.executable)


def test_every_page_has_commands_and_all_are_taken_by_their_parsers():
    every = doc_commands.commands()
    assert {c.page for c in every} >= {"README.md", "docs/evaluation.md", "docs/tpu.md", "docs/own-data.md"}  # fmt: skip
    assert len(every) > 80
    wrong = []
    for command in every:
        try:
            doc_commands.check(command)
        except Wrong as error:
            wrong.append(str(error))
    assert not wrong, "\n".join(wrong)


# Configs of the 7B: `init_from` gives weights, architecture and tokenizer come from `model`.
_SEVEN = re.compile(r"configs/(sft_stage[12]|rl|rl_zero)\.py")


def test_a_run_of_the_7b_names_its_model_and_its_data():
    runs = [
        (str(c), shlex.join([*c.words, *(f"{k}={v}" for k, v in c.environment.items())]))
        for c in doc_commands.commands()
        if c.page != "docs/rl.md" and "compile_check" not in c.program
    ]
    for name in ("sft_stage1", "sft_stage2", "rl", "rl_zero"):
        text = (ROOT / f"configs/{name}.py").read_text()
        runs.append((name, next(x for x in text.splitlines() if x.startswith("python -m"))))
    runs = [(told, text) for told, text in runs if _SEVEN.search(text)]
    assert len(runs) > 10
    for told, text in runs:
        for key in ("model", "data.rows", "data.videos"):
            assert f"--config.{key}=" in text, f"{told}\n  lacks --config.{key}"
        if re.search(r"v6e[:-]", text):
            assert "--config.mesh.tensor=2" in text, f"{told}\n  does not fit; see training.md"


def test_nothing_tells_to_install_vo3_from_an_index():
    """It is on none: pip would fetch whatever is called so there."""
    pages = [p for p in doc_commands.PAGES if p.name != "rl.md"]
    code = [p for folder in ("vo3", "data_prep", "launch") for p in (ROOT / folder).rglob("*.py")]
    for path in (*pages, *code):
        assert not re.search(r"pip install '?vo3\b", path.read_text()), path


def test_the_readme_names_every_extra():
    every = re.search(r"EXTRAS = \{(.*?)\n\}", (ROOT / "setup.py").read_text(), re.DOTALL).group(1)
    names = re.findall(r'^    "([a-z0-9]+)":', every, re.MULTILINE)
    assert len(names) > 10
    told = (ROOT / "README.md").read_text().split("More comes with extras")[1].split("\n\n")[0]
    assert not [name for name in names if f"`{name}`" not in told]


def test_no_command_is_overlooked():
    assert not doc_commands.overlooked()


def test_python_on_the_pages_parses_and_its_imports_are_there():
    blocks = doc_commands.blocks()
    assert blocks
    for block in blocks:
        doc_commands.check_python(block)


def test_a_test_runs_every_program():
    for command in doc_commands.commands():
        program = command.program
        measures = (
            program.startswith("benchmarks.") and program not in RUN_BY
        )  # what it prints is looked at
        assert measures or program in RUN_BY or program in RUN_BY_NONE, (
            f"{command}\n  name the test that runs `{program}` in RUN_BY"
        )
    for program, where in RUN_BY.items():
        file, _, name = where.partition("::")
        if program.startswith("vo3.plugins") and not (ROOT / file).exists():
            continue
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE), where


@pytest.mark.parametrize(
    "text",
    [
        "vo3 ask talk.mp4",
        "vo3 ask talk.mp4 What --chekpoint DIR",
        "vo3 eval mlvu --workdir OUT --set max_turn=3",
        "vo3 evaluate mlvu",
        "make clueword",
        "pip install -e '.[tpus]'",
        "pytest tests/vo3/model",
        "python -m vo3.train.sft --config=configs/tiny.py --workdir=OUT --config.data.row=ROWS",
        "python -m vo3.train.sft --config=configs/tiny.py",
        "python -m vo3.train.sft --config=configs/small.py --workdir=OUT",
        "python -m vo3.train.sft --config=configs/tiny.py --workdir=OUT more",
        "python -m vo3.evals.runner --config=configs/eval.py --config.benchmarks=mlvv --workdir=OUT",
        "python -m vo3.clueworld.evaluate --world=84",
        "python -m vo3.clueworld.evaluations --workdir=OUT",
        "TPU_NAME=x launch/tpu_vm.sh status",
        "launch/local.sh 2 --config=configs/debug.py --workdir=OUT --config.stepps=3",
        "lmms-eval --model vo3 --model_args checkpont=DIR --tasks videomme",
    ],
)
def test_a_wrong_command_is_noticed(text):
    command = doc_commands.command(ROOT / "README.md", 1, text)
    with pytest.raises(Wrong):
        doc_commands.check(command)


def test_colab_badges_open_the_notebooks_that_are_there():
    pages = [*doc_commands.PAGES, *sorted((ROOT / "notebooks").glob("*.ipynb"))]
    linked = [
        x
        for p in pages
        for x in re.findall(r"colab\.research\.google\.com/github/([^)\"\\\s]+)", p.read_text())
    ]
    repositories = {"/".join(x.split("/")[:2]) for x in linked}
    assert len(repositories) == 1, repositories
    for link in linked:
        assert (ROOT / link.split("/blob/main/")[1]).is_file(), link


@pytest.mark.soak
def test_own_data_from_top_to_bottom(tmp_path):
    """The walk of docs/own-data.md, command by command, as a reader would paste them."""
    page = (ROOT / "docs" / "own-data.md").read_text()
    walk = page.split("## The whole way, once")[1].split("\n\n")[2]
    lines = [line.strip() for line in walk.splitlines()]
    assert len(lines) == 7
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for line in lines:
        words = shlex.split(line)
        words = [sys.executable, *(["-m", "vo3.cli"] if words[0] == "vo3" else []), *words[1:]]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    assert (tmp_path / "out/own/eval/clueworld/tools/card.html").exists()
    assert (tmp_path / "out/own/eval/clueworld/tools/trajectories/index.html").exists()
