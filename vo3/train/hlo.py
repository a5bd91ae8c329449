"""Reading a compiled program: how often each of its computations runs, what its collectives send, its largest buffers.

The text is the TPU compiler's own dump of the optimised module. The trips of a loop are read from its counter; a branch counts as taken.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

_BYTES = {
    "pred": 1,
    "s4": 0.5,
    "u4": 0.5,
    "s8": 1,
    "u8": 1,
    "s16": 2,
    "u16": 2,
    "bf16": 2,
    "f16": 2,
}
_BYTES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "f8e4m3fn": 1, "f8e5m2": 1}
_SHAPE = re.compile(r"\b([a-z]\w*?)\[([\d,]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"^(?:\(.*?\)|[a-z]\w*\[[^ ]*) ([a-z][\w\-]*)\(")
_CALLEE = re.compile(
    r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_KNOWN_TRIPS = re.compile(r'known_trip_count"?[:=]\{"?n"?[:=]"?(\d+)')
# Newer compilers write an element of a tuple as `%tuple#3`.
_OPERAND = re.compile(r"%([\w.\-]+(?:#\d+)?)")
# What the TPU compiler makes of a collective between slices: a transfer through the hosts.
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')

COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array's dtype and sizes."""

    dtype: str
    sizes: tuple[int, ...]

    @property
    def bytes(self) -> float:
        """Of the whole array, without padding."""
        return math.prod(self.sizes) * _BYTES.get(self.dtype, 4)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: its result shapes (several for a tuple), operation, and the rest of the line."""

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    text: str


@dataclasses.dataclass(frozen=True)
class Program:
    """Computations by name, how often each runs in one execution, and loops whose trips were not found (counted once)."""

    computations: Mapping[str, tuple[Instruction, ...]]
    counts: Mapping[str, float]
    unknown_loops: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Collective:
    """What one kind of collective sends per device in one execution.

    Attributes:
      kind: of `COLLECTIVES`.
      between_slices: whether a group spans slices.
      times: executions.
      bytes: sent by (and arriving at) one device, by the ring algorithm: (n - 1) / n of the whole array for a gather, a scatter
        or an all-to-all, twice that for a reduction, all of it for a permutation.
    """

    kind: str
    between_slices: bool
    times: float
    bytes: float


def parse(text: str) -> Program:
    """The program of an HLO module's text.

    Raises:
      ValueError: no ENTRY computation.
    """
    computations: dict[str, list[Instruction]] = {}
    entry = current = None
    for line in text.splitlines():
        if not line.startswith(" "):
            found = _HEADER.match(line)
            if found:
                current = found.group(2)
                computations[current] = []
                entry = current if found.group(1) else entry
            elif line == "}":  # any other line goes on with an attribute that holds line breaks
                current = None
            continue
        found = _INSTRUCTION.match(line) if current is not None else None
        if found:
            rest = line[found.end() :]
            opcode = _OPCODE.match(rest)
            if opcode:
                shapes = tuple(_shapes(rest[: opcode.start(1)]))
                computations[current].append(
                    Instruction(found.group(1), shapes, opcode.group(1), rest[opcode.start(1) :])
                )
    if entry is None:
        raise ValueError("the text holds no ENTRY computation; it is no HLO module")
    counts, unknown = _counts(computations, entry)
    return Program({k: tuple(v) for k, v in computations.items()}, counts, tuple(unknown))


def _shapes(text: str) -> Iterable[Shape]:
    for dtype, sizes in _SHAPE.findall(text):
        yield Shape(dtype, tuple(int(s) for s in sizes.split(",") if s))


def _operands(i: Instruction) -> list[str]:
    return _OPERAND.findall(i.text.split(")", 1)[0])


def _counts(
    computations: Mapping[str, Sequence[Instruction]], entry: str
) -> tuple[dict[str, float], list[str]]:
    calls: dict[str, list[tuple[str, float]]] = {}
    unknown = []
    for name, instructions in computations.items():
        calls[name] = []
        for i in instructions:
            # The updates and the end of an asynchronous call name it again.
            if i.opcode.endswith(("-done", "-update")):
                continue
            trips = 1.0
            if i.opcode == "while":
                found = _trips(i, instructions, computations)
                trips = 1.0 if found is None else float(found)
                unknown += [i.name] if found is None else []
            calls[name] += [(callee, trips) for _, callee in _CALLEE.findall(i.text)]
            for branches in _BRANCHES.findall(i.text):
                calls[name] += [(b.strip().lstrip("%"), 1.0) for b in branches.split(",")]
    counts: dict[str, float] = collections.defaultdict(float)
    counts[entry] = 1.0
    for name in _callers_first(calls, entry):
        for callee, times in calls[name]:
            counts[callee] += counts[name] * times
    return dict(counts), unknown


def _trips(
    loop: Instruction,
    around: Sequence[Instruction],
    computations: Mapping[str, Sequence[Instruction]],
) -> int | None:
    """Trips of `while (i < bound) i += step` from the counter's start: what JAX's scans and the compiler's own loops are."""
    known = _KNOWN_TRIPS.search(loop.text)
    if known:
        return int(known.group(1))
    callee = dict(_CALLEE.findall(loop.text))
    condition = {i.name: i for i in computations[callee["condition"]]}
    body = {i.name: i for i in computations[callee["body"]]}
    compare = next((i for i in condition.values() if i.opcode == "compare"), None)
    if compare is None or "direction=LT" not in compare.text:
        return None
    left, right = (_behind(name, condition) for name in _operands(compare))
    bound = _constant(right)
    index = left and re.search(r"index=(\d+)", left.text)
    if bound is None or not index or left.opcode != "get-tuple-element":
        return None
    place = int(index.group(1))
    result = [i for i in computations[callee["body"]] if i.opcode == "tuple"][-1:]
    start = {i.name: i for i in around}
    given = _behind(_operands(loop)[0], start)
    if not result or given is None or given.opcode != "tuple":
        return None
    following = _behind(_operands(result[0])[place], body)
    first = _constant(_behind(_operands(given)[place], start))
    if following is None or following.opcode != "add" or first is None:
        return None
    step = next(
        (c for n in _operands(following) if (c := _constant(_behind(n, body))) is not None), None
    )
    return -(-(bound - first) // step) if step else None


def _behind(name: str, inside: Mapping[str, Instruction]) -> Instruction | None:
    """The instruction of that name, looked at through copies."""
    found = _named(name, inside)
    while found is not None and found.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
        found = _named(_operands(found)[0], inside)
    return found


def _named(name: str, inside: Mapping[str, Instruction]) -> Instruction | None:
    """The instruction of that name, or what `tuple#index` stands for."""
    of, _, index = name.partition("#")
    if not index:
        return inside.get(name)
    return Instruction(name, (), "get-tuple-element", f"get-tuple-element(%{of}), index={index}")


def _constant(i: Instruction | None) -> int | None:
    found = re.match(r"constant\((-?\d+)\)", i.text) if i is not None else None
    return int(found.group(1)) if found else None


def _callers_first(calls: Mapping[str, list[tuple[str, float]]], entry: str) -> list[str]:
    order: list[str] = []
    seen: set[str] = set()
    stack = [(entry, iter(calls[entry]))]
    seen.add(entry)
    while stack:
        name, rest = stack[-1]
        for callee, _ in rest:
            if callee in calls and callee not in seen:
                seen.add(callee)
                stack.append((callee, iter(calls[callee])))
                break
        else:
            order.append(name)
            stack.pop()
    return order[::-1]


# ---------------------------------------------------------------- collectives


def collectives(program: Program, *, devices: int, slices: int = 1) -> list[Collective]:
    """What is sent, summed by kind and by whether it crosses slices; largest first.

    Args:
      devices: partitions of the program, in order of slices.
      slices: of equal size.
    """
    sums: dict[tuple[str, bool], list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
    for name, instructions in program.computations.items():
        times = program.counts.get(name, 0.0)
        for i in instructions:
            kind = i.opcode.removesuffix("-start")
            transfer = _TRANSFER.search(i.text) if kind == "send" else None
            if transfer and times:
                kind, sent = _through_hosts(i, transfer.group(1), slices)
                sums[kind, True][0] += times
                sums[kind, True][1] += times * sent
            if kind not in COLLECTIVES or transfer or not times:
                continue
            groups = replica_groups(i.text, devices)
            n = max(map(len, groups))
            size = _payload(i, kind, n)
            # The TPU compiler writes a reduce-scatter as a fusion of an all-reduce and the slice that is kept.
            scattered = kind == "all-reduce" and "all-reduce-scatter" in name
            kind = "reduce-scatter" if scattered else kind
            sent = size * _factor(kind, n)
            key = (kind, any(len({d * slices // devices for d in g}) > 1 for g in groups))
            sums[key][0] += times
            sums[key][1] += times * sent
    found = [Collective(kind, between, *both) for (kind, between), both in sums.items()]
    return sorted(found, key=lambda c: -c.bytes)


def _through_hosts(i: Instruction, transfer: str, slices: int) -> tuple[str, float]:
    """Kind and bytes of a collective between slices, each of which sends its part of the array: i is the send."""
    kind = transfer.lower().replace("_", "-")
    kind = kind if kind in COLLECTIVES else "collective-permute"
    part = i.shapes[0].bytes
    return kind, part * (slices if kind == "all-gather" else 1) * _factor(kind, slices)


def _payload(i: Instruction, kind: str, n: int) -> float:
    """Bytes of the whole array: what a gather results in, what a scatter starts from."""
    shapes = i.shapes
    if i.opcode.endswith("-start") and kind == "all-gather":
        shapes = shapes[len(shapes) // 2 :]  # (operands, results)
    elif i.opcode.endswith("-start") and kind == "collective-permute":
        shapes = shapes[:1]  # (operand, result, contexts)
    return sum(s.bytes for s in shapes) * (n if kind == "reduce-scatter" else 1)


def _factor(kind: str, n: int) -> float:
    if kind in ("collective-permute", "collective-broadcast"):
        return 1.0
    return (2 if kind == "all-reduce" else 1) * (n - 1) / n


def replica_groups(text: str, devices: int) -> list[tuple[int, ...]]:
    """The groups of an instruction: `{{0,1},{2,3}}`, `[2,2]<=[4]T(0)` or `mesh['a'=2,'b'=2] {'b'}`; pairs of a permutation; all devices
    where none are named.
    """
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", text)
    if pairs:
        return [tuple(map(int, p)) for p in re.findall(r"\{(\d+),(\d+)", pairs.group(0))]
    named = re.search(r"replica_groups=@?\w*\[('[^\]]*)\][^{]*\{([^}]*)\}", text)
    if named:
        return _mesh_groups(*named.groups())
    tiled = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if tiled:
        shape, dims = ([int(x) for x in g.split(",")] for g in tiled.groups()[:2])
        ids = np.arange(math.prod(dims)).reshape(dims)
        if tiled.group(3):
            ids = ids.transpose([int(x) for x in tiled.group(3).split(",")])
        return [tuple(map(int, row)) for row in ids.reshape(shape[0], -1)]
    listed = re.search(r"replica_groups=\{((?:\{[\d,]*\},?)+)\}", text)
    if listed:
        groups = [
            tuple(int(x) for x in g.split(",") if x)
            for g in re.findall(r"\{([\d,]*)\}", listed.group(1))
        ]
        groups = [g for g in groups if g]
        if groups:
            return groups
    return [tuple(range(devices))]


def _mesh_groups(mesh: str, axes: str) -> list[tuple[int, ...]]:
    """Groups along some axes of a mesh; an axis may be part of one: `'a':(2)4` is the 4 in the middle of 2 x 4 x rest."""
    sizes = [(n, int(s)) for n, s in re.findall(r"'([^']+)'=(\d+)", mesh)]
    dims: list[int] = []
    chosen: list[int] = []
    for name, size in sizes:
        whole = re.search(rf"'{re.escape(name)}'(?!:)", axes)
        parts = sorted(
            (int(pre), int(n))
            for pre, n in re.findall(rf"'{re.escape(name)}':\((\d+)\)(\d+)", axes)
        )
        if whole:
            chosen.append(len(dims))
            dims.append(size)
            continue
        done = 1
        for pre, n in parts:
            dims.append(pre // done)
            chosen.append(len(dims))
            dims.append(n)
            done = pre * n
        dims.append(size // done)
    rest = [d for d in range(len(dims)) if d not in chosen]
    ids = np.arange(math.prod(dims)).reshape(dims).transpose(rest + chosen)
    ways = math.prod(dims[d] for d in chosen)
    return [tuple(map(int, row)) for row in ids.reshape(-1, ways)]


# ---------------------------------------------------------------- buffers


def square_buffers(program: Program, *, length: int, vocabulary: Sequence[int] = ()) -> list[str]:
    """Arrays with two axes of at least `length`, or one of them and one of `vocabulary`'s sizes: a mask, scores, or all logits at once.

    Args:
      length: tokens of a row on one device.
      vocabulary: its size, and its size on one device.
    """
    found = set()
    for instructions in program.computations.values():
        for i in instructions:
            for shape in i.shapes:
                long = sum(size >= length for size in shape.sizes)
                words = any(size in vocabulary for size in shape.sizes)
                rest = sum(size >= length and size not in vocabulary for size in shape.sizes)
                if long > 1 or (words and rest):
                    found.add(f"{shape.dtype}[{','.join(map(str, shape.sizes))}]")
    return sorted(found)


def largest_buffers(program: Program, count: int = 5) -> list[tuple[float, str, str]]:
    """(bytes, shape, operation) of the largest results outside of fusions."""
    inside = {
        c
        for n in program.computations.values()
        for i in n
        if i.opcode == "fusion"
        for _, c in _CALLEE.findall(i.text)
    }
    best: dict[str, tuple[float, str, str]] = {}
    for name, instructions in program.computations.items():
        if name in inside:
            continue
        for i in instructions:
            if i.opcode in ("parameter", "tuple", "get-tuple-element", "while", "bitcast"):
                continue
            for shape in i.shapes:
                text = f"{shape.dtype}[{','.join(map(str, shape.sizes))}]"
                best.setdefault(text, (shape.bytes, text, i.opcode))
    return sorted(best.values(), reverse=True)[:count]
