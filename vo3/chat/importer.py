"""Reads the wording of somebody's Python checkout into a prompt pack, by parsing it and never by running it.

    python -m vo3.chat.importer CHECKOUT --list                      # every string constant: its name, place, beginning
    python -m vo3.chat.importer CHECKOUT pack.yaml --map map.yaml    # writes the pack

The map says which constant stands for which template, and what the fields are called over there:

    templates:
      system.tool: prompts.py:SYSTEM_PROMPT      # a constant; `file.py:` only where the name alone is not unique
      error: RetryPrompt.text                    # of a class, or a local variable of a function
      option: TEXTS[option]                      # an entry of a dict or list
      forced: agent/loop.py:120                  # a string that has no name, by its line
      observation: [OBS_HEAD, "={media}\\n", OBS_TAIL]     # joined; after `=` stands literal text
    fields: {n_frames: frames, clip.fps: fps}    # theirs: ours

Strings may be put together by adjacency, `+`, `"".join([...])`, f-strings, names of constants in the same file,
`.strip()` and `textwrap.dedent`. A video placeholder in the text becomes `{media}`.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import os
import pathlib
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence

import yaml
from etils import epath

from vo3.chat.prompts import OPTIONAL, RULES, PromptPack
from vo3.trajectory import VIDEO_MARK

_MEDIA = re.compile(rf"{re.escape(VIDEO_MARK)}|<\|vision_start\|><\|video_pad\|><\|vision_end\|>")
_BRACES = re.compile(r"\{\{|\}\}|\{([^{}\n]*)\}")


@dataclasses.dataclass(frozen=True)
class Literal:
    """Text as it stands; `final` when its braces stand for themselves (the literal part of an f-string)."""

    text: str
    final: bool = False


@dataclasses.dataclass(frozen=True)
class Field:
    """An expression inside an f-string, as source."""

    source: str


Text = tuple[Literal | Field, ...]


@dataclasses.dataclass(frozen=True)
class Constant:
    """A string found in the checkout: its qualified name ("" when it has none), place and parts."""

    name: str
    file: str
    line: int
    text: Text

    @property
    def place(self) -> str:
        """`file:line`."""
        return f"{self.file}:{self.line}"

    def show(self) -> str:
        """The text on one line, fields in braces."""
        parts = (p.text if isinstance(p, Literal) else f"{{{p.source}}}" for p in self.text)
        return " ".join("".join(parts).split())


@dataclasses.dataclass(frozen=True)
class ImportReport:
    """What an import did.

    Attributes:
      found: places of the constants used, by template.
      from_base: templates that came from the base pack.
      unreadable: files that could not be parsed, with the reason.
    """

    found: dict[str, str]
    from_base: tuple[str, ...]
    unreadable: tuple[str, ...]


def find_constants(checkout: str | os.PathLike[str]) -> tuple[list[Constant], tuple[str, ...]]:
    """Every string constant of the `.py` files under a folder, and the files that could not be parsed.

    Raises:
      ValueError: there is no such folder, or no Python file in it.
    """
    root = pathlib.Path(checkout)
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; give the root of the checkout")
    constants, unreadable = [], []
    names = sorted(p.relative_to(root) for p in root.rglob("*.py"))
    names = [n for n in names if not any(part.startswith(".") for part in n.parts)]
    if not names:
        raise ValueError(f"{root} holds no Python files; give the root of the checkout")
    for name in names:
        try:
            tree = ast.parse((root / name).read_text(encoding="utf-8"))
        except (
            SyntaxError,
            ValueError,
            RecursionError,
        ) as error:  # ValueError: null bytes, or not UTF-8
            unreadable.append(f"{name.as_posix()}: {error}")
            continue
        constants += _Collector(name.as_posix()).collect(tree)
    return constants, tuple(unreadable)


def import_upstream(
    checkout: str | os.PathLike[str],
    out_yaml: epath.PathLike,
    *,
    templates: Mapping[str, str | Sequence[str]],
    fields: Mapping[str, str] | None = None,
    name: str = "imported",
    base: str | None = None,
    seconds_decimals: int = 1,
    fps_decimals: int = 2,
) -> ImportReport:
    """Writes a prompt pack from the constants of a checkout.

    Args:
      checkout: folder of Python files; parsed, never run.
      out_yaml: the pack to write.
      templates: template key -> constant, or a list of constants and `=text` to join; see the module.
      fields: names of fields there -> names here.
      name: the pack's name.
      base: pack that gives the templates which are not mapped; None refuses to leave any out.
      seconds_decimals, fps_decimals: see `PromptPack`.

    Raises:
      ValueError: constants that are missing or ambiguous, unknown keys, fields that do not fit; nothing is written.
    """
    constants, unreadable = find_constants(checkout)
    if unknown := sorted(set(templates) - set(RULES)):
        raise ValueError(f"the map has unknown templates {unknown}; a pack has {sorted(RULES)}")
    result = dict(PromptPack.load(base).templates) if base else {}
    from_base = tuple(key for key in RULES if key in result and key not in templates)
    found, problems = {}, []
    for key, references in templates.items():
        parts, places = [], []
        for reference in [references] if isinstance(references, str) else references:
            if reference.startswith("="):
                parts.append(reference[1:])
                continue
            try:
                constant = _look_up(reference, constants)
                parts.append(_template(constant, fields or {}))
                places.append(constant.place)
            except ValueError as error:
                problems.append(f"{key}: {error}")
        result[key] = "".join(parts)
        found[key] = ", ".join(places)
    if lost := [key for key in RULES if key not in result and key not in OPTIONAL]:
        problems.append(f"not mapped: {', '.join(lost)} (map them, or name a base pack)")
    if problems:
        raise ValueError(f"nothing imported from {checkout}:\n  " + "\n  ".join(problems))
    pack = PromptPack(
        name=name,
        templates={key: result[key] for key in RULES if key in result},
        seconds_decimals=seconds_decimals,
        fps_decimals=fps_decimals,
        source=str(checkout),
    )
    text = yaml.dump(pack.to_dict(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    epath.Path(out_yaml).write_text(text)
    return ImportReport(found, from_base, unreadable)


def _look_up(reference: str, constants: list[Constant]) -> Constant:
    file, _, name = reference.rpartition(":")
    hits = [
        c
        for c in constants
        if (not file or c.file == file or c.file.endswith("/" + file))
        and (c.line == int(name) if name.isdecimal() else c.name == name)
    ]
    if not hits:
        known = sorted({c.name for c in constants if c.name})
        last = re.split(r"[.\[]", name)[0].lower()
        near = [n for n in known if last in n.lower() or n.lower() in last][:5]
        raise ValueError(
            f"no string constant {reference!r}" + (f"; did you mean {near}?" if near else "")
        )
    if len({c.text for c in hits}) > 1:
        raise ValueError(
            f"{reference!r} is ambiguous: {[c.place for c in hits]}; write file.py:LINE"
        )
    return hits[0]


def _template(constant: Constant, fields: Mapping[str, str]) -> str:
    """The constant as a template of ours."""
    unknown: list[str] = []

    def field(source: str) -> str:
        ours = fields.get(source, source)
        if not ours.isidentifier():
            unknown.append(source)
        return f"{{{ours}}}"

    def literal(part: Literal) -> str:
        # Doubled braces are written for str.format only; JSON never has two opening braces in a row.
        doubled = "{{" in part.text and not part.final
        if part.final:
            return part.text

        def one(match: re.Match[str]) -> str:
            if match[1] is None:
                return match[0][0] if doubled else match[0]
            source = re.split(r"[:!]", match[1])[0].strip()
            return field(source) if source in fields else match[0]

        return _BRACES.sub(one, part.text)

    text = "".join(literal(p) if isinstance(p, Literal) else field(p.source) for p in constant.text)
    if unknown:
        raise ValueError(
            f"{constant.place} uses {unknown}; say in `fields` what they are called here"
        )
    return _MEDIA.sub("{media}", text)


class _Collector:
    """Strings of one file, in order of appearance."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.constants: list[Constant] = []
        self.known: dict[str, Text] = {}
        self.named: set[ast.expr] = set()

    def collect(self, tree: ast.Module) -> list[Constant]:
        self._body(tree.body, "")
        waiting: list[ast.AST] = [tree]
        while waiting:
            node = waiting.pop()
            if node in self.named:
                continue
            text = (
                None
                if isinstance(node, ast.Name) or not isinstance(node, ast.expr)
                else self._text(node)
            )
            if text:
                self.constants.append(Constant("", self.file, node.lineno, text))
            else:
                waiting.extend(ast.iter_child_nodes(node))
        return sorted(self.constants, key=lambda c: c.line)

    def _body(self, body: Sequence[ast.stmt], scope: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                self._body(node.body, f"{scope}{node.name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    if isinstance(target, ast.Name):
                        self._add(f"{scope}{target.id}", node.value)
            else:
                for inner in ("body", "orelse", "finalbody"):
                    self._body(getattr(node, inner, []), scope)

    def _add(self, name: str, value: ast.expr) -> None:
        if isinstance(value, ast.Dict):
            for key, entry in zip(value.keys, value.values, strict=True):
                if isinstance(key, ast.Constant):
                    self._add(f"{name}[{key.value}]", entry)
        elif isinstance(value, ast.List | ast.Tuple):
            for number, entry in enumerate(value.elts):
                self._add(f"{name}[{number}]", entry)
        elif (text := self._text(value)) is not None:
            self.known[name] = text
            self.named.add(value)
            self.constants.append(Constant(name, self.file, value.lineno, text))

    def _text(self, node: ast.expr) -> Text | None:
        """The string that an expression makes, as far as it can be told without running it."""
        match node:
            case ast.Constant(value=str() as text):
                return (Literal(text),)
            case ast.JoinedStr(values=values):
                return tuple(
                    Literal(v.value, final=True)
                    if isinstance(v, ast.Constant)
                    else Field(ast.unparse(v.value))
                    for v in values
                )
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return self._concat([left, right])
            case ast.Name(id=name):
                return self.known.get(name)
            case ast.Call(
                func=ast.Attribute(value=ast.Constant(value=str() as gap), attr="join"), args=[made]
            ):
                if isinstance(made, ast.List | ast.Tuple):
                    spaced = [x for entry in made.elts for x in (ast.Constant(gap), entry)][1:]
                    return self._concat(spaced)
            case ast.Call(func=ast.Attribute(value=inner, attr="format")):
                return self._text(inner)
            case ast.Call(
                func=ast.Attribute(value=inner, attr="strip" | "lstrip" | "rstrip" as how), args=[]
            ):
                return _strip(self._text(inner), how)
            case (
                ast.Call(func=ast.Attribute(attr="dedent" | "cleandoc" as how), args=[inner])
                | ast.Call(func=ast.Name(id="dedent" | "cleandoc" as how), args=[inner])
            ):
                text = self._text(inner)
                if text is not None and len(text) == 1 and isinstance(text[0], Literal):
                    made = textwrap.dedent if how == "dedent" else inspect.cleandoc
                    return (Literal(made(text[0].text), text[0].final),)
        return None

    def _concat(self, nodes: Sequence[ast.expr]) -> Text | None:
        texts = [self._text(node) for node in nodes]
        return (
            None
            if any(t is None for t in texts)
            else tuple(part for text in texts for part in text)
        )


def _strip(text: Text | None, how: str) -> Text | None:
    if not text:
        return text
    parts = list(text)
    for place, methods in ((0, ("strip", "lstrip")), (-1, ("strip", "rstrip"))):
        part = parts[place]
        if how in methods and isinstance(part, Literal):
            stripped = part.text.lstrip() if place == 0 else part.text.rstrip()
            parts[place] = Literal(stripped, part.final)
    return tuple(parts)


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; exit code 2 for input that does not fit."""
    parser = argparse.ArgumentParser(prog="vo3.chat.importer", description=__doc__.split("\n")[0])
    parser.add_argument("checkout", help="folder of Python files")
    parser.add_argument("out", nargs="?", help="the pack to write")
    parser.add_argument("--map", help="YAML file with `templates` and `fields`")
    parser.add_argument("--base", help="pack that gives what is not mapped")
    parser.add_argument("--name", default="imported", help="name of the pack")
    parser.add_argument("--list", action="store_true", help="show the constants and write nothing")
    args = parser.parse_args(argv)
    try:
        if args.list:
            constants, unreadable = find_constants(args.checkout)
            for c in constants:
                print(f"{c.place}\t{c.name or '-'}\t{c.show()[:100]}")
            print("".join(f"not read: {line}\n" for line in unreadable), end="")
            return 0
        if not args.out or not args.map:
            raise ValueError("give the pack to write and --map, or --list")
        given = yaml.safe_load(epath.Path(args.map).read_text())
        if (
            not isinstance(given, dict)
            or not set(given) <= {"templates", "fields"}
            or "templates" not in given
        ):
            raise ValueError(f"{args.map} is a mapping with `templates` and, if needed, `fields`")
        report = import_upstream(args.checkout, args.out, name=args.name, base=args.base, **given)
    except (ValueError, OSError, yaml.YAMLError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for key, place in report.found.items():
        print(f"{key}: {place}")
    print(f"from {args.base}: {', '.join(report.from_base)}\n" if report.from_base else "", end="")
    print("".join(f"not read: {line}\n" for line in report.unreadable), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
