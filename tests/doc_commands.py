"""The commands in README.md and docs/*.md, and how to check one without running it: its own parser takes it."""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import importlib.util
import io
import os
import pathlib
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_collections
from absl import app, flags

from vo3 import cli
from vo3.evals import config as evals_config
from vo3.evals.commands import parse_settings
from vo3.plugins.questions import settings_of
from vo3.train.config import ConfigError, override

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))

# What a line of a block or a piece of code in the text begins with, if it is a command.
_PROGRAMS = (
    "python",
    "vo3",
    "make",
    "pytest",
    "pip",
    "lmms-eval",
    "hf",
    "curl",
    "kubectl",
    "gcloud",
    "git",
    "docker",
    "launch/",
)
_ASSIGNMENTS = re.compile(r"^(?:[A-Z_0-9]+=\S+ +)*")
# Programs that are not ours; nothing of them is checked.
FOREIGN = ("hf", "curl", "kubectl", "gcloud", "git", "docker")


class Wrong(AssertionError):
    """A command that cannot be run as it is written."""


@dataclasses.dataclass(frozen=True)
class Command:
    """A command as it stands on a page.

    Attributes:
      page, line: where.
      text: without its comment; continued lines joined.
      environment: assignments before it.
      words: of the command, options in brackets included, `...` left out.
    """

    page: str
    line: int
    text: str
    environment: dict[str, str]
    words: tuple[str, ...]

    @property
    def program(self) -> str:
        """What is run: `vo3 ask`, `vo3.train.sft`, `make demo`, `launch/local.sh`, ..."""
        first, rest = self.words[0], self.words[1:]
        if first == "python":
            return rest[1] if rest[0] == "-m" else rest[0]
        return f"{first} {rest[0]}" if first in ("vo3", "make") and rest else first

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


@dataclasses.dataclass(frozen=True)
class Block:
    """A stretch of Python on a page."""

    page: str
    line: int
    text: str


def _pieces(page: pathlib.Path) -> Iterator[tuple[int, str, str]]:
    """(line, kind, text) of what is code: kind is "line", "inline" or "python"."""
    lines = page.read_text().splitlines()
    fence, number, python = None, 0, []
    while number < len(lines):
        start, line = number, lines[number]
        number += 1
        if line.strip().startswith("```"):
            if fence == "python":
                yield start - len(python) + 1, "python", "\n".join(python)
            fence, python = (line.strip()[3:] if fence is None else None), []
        elif fence == "python":
            python.append(line)
        elif fence is not None or line.startswith("    "):
            text = line.strip()
            while text.endswith("\\") and number < len(lines):
                text = text[:-1] + " " + lines[number].strip()
                number += 1
            yield start + 1, "line", text
        else:
            for found in re.findall(r"`([^`]+)`", line):
                yield start + 1, "inline", found


def command(page: pathlib.Path, line: int, text: str) -> Command | None:
    """The command of a line; None when it is none."""
    before = _ASSIGNMENTS.match(text).group()
    rest = text[len(before) :].removeprefix("$ ")
    if not re.match(rf"(?:{'|'.join(map(re.escape, _PROGRAMS))})", rest):
        return None
    # Options in brackets may be given; a pipe's other end is not ours.
    rest = re.sub(r"\[(--[^\]]+)\]", r"\1", rest)
    try:
        words = shlex.split(rest, comments=True)
    except ValueError as error:
        raise Wrong(f"{page.name}:{line}: {text}: {error}") from error
    for end in ("|", ">", "&&", "&"):
        if end in words:
            words = words[: words.index(end)]
    words = [word for word in words if word != "..."]
    if not (words[0] in _PROGRAMS or words[0].startswith("launch/")):
        return None
    given = dict(item.split("=", 1) for item in before.split())
    return Command(
        page.relative_to(ROOT).as_posix(), line, text.split("  #")[0].strip(), given, tuple(words)
    )


def commands() -> list[Command]:
    """Every command, in order. In the text one that names only its program (`vo3 ask`) counts too; a path does not."""
    found = []
    for page in PAGES:
        for line, kind, text in _pieces(page):
            if kind == "python" or (
                kind == "inline" and (ROOT / text.split()[0]).is_file() and " " not in text
            ):
                continue
            if kind == "inline" and not re.match(r"\S+ ", text):
                continue
            if (one := command(page, line, text)) is not None:
                found.append(one)
    return found


def overlooked() -> list[str]:
    """Lines of code with flags that no command of ours begins: a program that is not known here, or a command that was cut off."""
    return [
        f"{page.relative_to(ROOT)}:{line}: {text}"
        for page in PAGES
        for line, kind, text in _pieces(page)
        if kind == "line"
        and re.search(r"(?:^|\s)--?[a-z]", text.split("  #")[0])
        and not text.startswith("{")
        and command(page, line, text) is None
    ]


def blocks() -> list[Block]:
    """Every stretch of Python."""
    return [
        Block(page.relative_to(ROOT).as_posix(), line, text)
        for page in PAGES
        for line, kind, text in _pieces(page)
        if kind == "python"
    ]


# ---------------------------------------------------------------- checks


class _Parsed(BaseException):
    """The parser has taken the arguments: the command goes no further."""

    def __init__(self, given):
        self.given = given


@contextlib.contextmanager
def _only_parsing() -> Iterator[None]:
    """Whatever parses its arguments, with argparse or absl, stops right behind; absl's flags are as they were afterwards."""
    original, run, environment = argparse.ArgumentParser.parse_args, app.run, dict(os.environ)
    before = set(flags.FLAGS)

    def parse(self, args=None, namespace=None):
        raise _Parsed(original(self, args, namespace))

    def stop(main, argv=None, flags_parser=app.parse_flags_with_usage):
        left = flags_parser(list(argv or sys.argv))
        if len(left) > 1:
            raise Wrong(f"words that are no flags: {left[1:]}")
        config = getattr(flags.FLAGS, "config", None)
        if config is not None:
            config.keys()  # a file that is not there shows only here
        raise _Parsed(config)

    argparse.ArgumentParser.parse_args, app.run = parse, stop
    try:
        yield
    finally:
        argparse.ArgumentParser.parse_args, app.run = original, run
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
        os.environ.clear()
        os.environ.update(environment)


def _given(run: Callable[[], Any], argv: Sequence[str]) -> Any:
    """What a command's parser makes of the arguments: a namespace, or the configuration."""
    said, told = sys.argv, io.StringIO()
    sys.argv = ["command", *argv]
    try:
        with (
            _only_parsing(),
            contextlib.redirect_stderr(told),
            contextlib.redirect_stdout(told),
            contextlib.chdir(ROOT),
        ):
            run()
    except _Parsed as parsed:
        return parsed.given
    except (SystemExit, flags.Error, OSError, ValueError) as error:
        lines = told.getvalue().strip().splitlines()
        raise Wrong(
            f"its parser refuses it: {error}; {' '.join(lines[:1] + lines[-2:])}"
        ) from error
    finally:
        sys.argv = said
    raise Wrong("it parses no arguments")


def check(command: Command) -> None:
    """Raises `Wrong` unless the command's own parser takes it."""
    first = command.words[0]
    if first in FOREIGN:
        return
    try:
        if first == "vo3":
            _vo3(command.words[1:])
        elif first == "python":
            _python(command.words[1:])
        elif first == "make":
            _make(command.words[1:])
        elif first == "pip":
            _pip(command.words[1:])
        elif first == "pytest":
            _pytest(command.words[1:])
        elif first == "lmms-eval":
            _lmms_eval(command.words[1:])
        else:
            _launcher(command)
    except Wrong as error:
        raise Wrong(f"{command}\n  {error}") from error


def _vo3(argv: tuple[str, ...]) -> None:
    if not argv[1:] or argv[1].startswith("--"):  # named in the text: its flags must be there
        help_text = io.StringIO()
        with contextlib.redirect_stdout(help_text), contextlib.suppress(SystemExit):
            cli.main([argv[0], "--help"])
        named = [word for word in argv[1:] if word.startswith("--")]
        if unknown := [word for word in named if word not in help_text.getvalue()]:
            raise Wrong(f"vo3 {argv[0]} has no {unknown}")
        return
    given = _given(lambda: cli.main(list(argv)), argv)
    try:
        parse_settings(getattr(given, "set", None) or ())
    except ConfigError as error:
        raise Wrong(str(error)) from error


def _python(argv: tuple[str, ...]) -> None:
    if argv[0] != "-m":
        if not (ROOT / argv[0]).is_file():
            raise Wrong(f"there is no {argv[0]}")
        _given(lambda: runpy.run_path(str(ROOT / argv[0]), run_name="__main__"), argv[1:])
        return
    name, rest = argv[1], argv[2:]
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise Wrong(f"there is no module {name}")
    if not rest:  # named in the text
        return
    if not re.search(r"argparse|absl", pathlib.Path(found.origin).read_text()):
        raise Wrong(f"{name} takes no arguments")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # imported before
        config = _given(lambda: runpy.run_module(name, run_name="__main__", alter_sys=True), rest)
    if isinstance(config, ml_collections.ConfigDict) and "benchmarks" in config:
        try:
            evals_config.validate(config)
        except ConfigError as error:
            raise Wrong(str(error)) from error


def _make(argv: tuple[str, ...]) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for word in argv:
        if "=" not in word and word not in targets:
            raise Wrong(f"the Makefile has no target {word}")


def _pip(argv: tuple[str, ...]) -> None:
    extras = re.search(r"EXTRAS = \{(.*?)\n\}", (ROOT / "setup.py").read_text(), re.DOTALL).group(1)
    known = set(re.findall(r'^    "([a-z0-9]+)":', extras, re.MULTILINE))
    for word in argv:
        for named in re.findall(r"(?:vo3|\.)\[([^\]]+)\]", word):
            if unknown := set(named.split(",")) - known:
                raise Wrong(f"setup.py has no extra {sorted(unknown)}")


def _lmms_eval(argv: tuple[str, ...]) -> None:
    """Its flags are not ours, the model's arguments are."""
    given = dict(zip(argv[::2], argv[1::2], strict=True))
    if given["--model"] != "vo3":
        return
    settings = dict(pair.split("=", 1) for pair in given["--model_args"].split(","))
    settings.pop("trajectories", None)
    try:
        evals_config.validate(override(evals_config.defaults(), **settings_of(settings)))
    except ConfigError as error:
        raise Wrong(str(error)) from error


def _pytest(argv: tuple[str, ...]) -> None:
    for word in argv:
        if word.startswith("tests") and not (ROOT / word).exists():
            raise Wrong(f"there is no {word}")


def _launcher(command: Command) -> None:
    """Launchers have a dry run; what follows `--` (for local.sh everything) are the trainer's flags."""
    script, *rest = command.words
    if not (ROOT / script).is_file():
        raise Wrong(f"there is no {script}")
    if len(rest) < 2 and not command.environment:  # named in the text, as `launch/tpu_vm.sh up`
        return
    end = rest.index("--") if "--" in rest else len(rest)
    given = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    first = 0 if script.endswith("xpk.sh") else 1
    dry = [] if "--dry-run" in rest else ["--dry-run"]
    words = [script, *rest[:first], *dry, *rest[first:]]
    done = subprocess.run(
        ["bash", *words], cwd=ROOT, env=given | command.environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    if done.returncode:
        raise Wrong(f"its dry run ends with {done.returncode}: {done.stderr.strip()}")
    trainer = rest[1:] if script.endswith("local.sh") else rest[end + 1 :]
    if "CONFIG" in command.environment:
        trainer = [f"--config={command.environment['CONFIG']}", "--workdir=out", *trainer]
    elif not trainer:  # an action without a run
        return
    _python(("-m", command.environment.get("MODULE", "vo3.train.sft"), *trainer))


def check_python(block: Block) -> None:
    """Raises `Wrong` unless the block parses and what it imports is there."""
    try:
        tree = ast.parse(block.text)
    except SyntaxError as error:
        raise Wrong(f"{block.page}:{block.line}: {error}") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in (
            "vo3",
            "pallas_kernels",
            "data_prep",
        ):
            module = importlib.import_module(node.module)
            for name in node.names:
                if not hasattr(module, name.name):
                    raise Wrong(f"{block.page}:{block.line}: {node.module} has no {name.name}")
        elif isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] in ("vo3", "pallas_kernels", "data_prep"):
                    importlib.import_module(name.name)
