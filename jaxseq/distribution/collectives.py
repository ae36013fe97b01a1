"""The collectives of a compiled program: what is exchanged, over which axes of the mesh, how often and how many bytes.

    compiled = train_step.lower(state, batch).compile()
    for row in collectives(compiled, mesh): print(row)

They are read from the text of the optimised program. A collective inside a loop counts once for each iteration, if XLA
states the number of iterations.
"""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_BITS = {"pred": 8, "bf16": 16, "f16": 16, "c64": 64, "c128": 128}
_RESULT = re.compile(
    rf"= (?P<type>.*?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\((?P<operands>.*?)\), (?P<rest>.*)"
)
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_CALLED = re.compile(r"(?:to_apply|body|condition|calls|branch_computations)=\{?%?([\w.\-]+(?:, %[\w.\-]+)*)\}?")
_ARRAY = re.compile(r"\b(pred|bf16|[a-z]\d+)\[([\d,]*)\]")


class Collective(NamedTuple):
    """One collective operation of a program."""

    kind: str
    axes: tuple[str, ...]
    """The axes of the mesh over which it communicates."""
    devices: int
    """The number of devices of a group."""
    bytes: int
    """The bytes of its result on a device; for a reduce-scatter those of its operand."""
    times: int
    """How often a step runs it: the iterations of the loops around it."""
    in_loop: bool
    shapes: str

    @property
    def traffic(self) -> float:
        """The bytes that a device sends in one step, by the ring algorithms, for ``k`` devices and ``n`` bytes.

        all-reduce ``2 n (k - 1) / k``; all-gather, reduce-scatter and all-to-all ``n (k - 1) / k``; permute ``n``.
        """
        share = (self.devices - 1) / self.devices
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
        return self.bytes * factor * self.times


def collectives(compiled: Any, mesh: Mesh) -> list[Collective]:
    """The collectives of a compiled program (or of its text) over a mesh, in the order of the text."""
    text = compiled if isinstance(compiled, str) else compiled.as_text()
    lines = list(_lines(text))
    times = _times(lines)
    found = []
    for computation, line in lines:
        match = _RESULT.search(line)
        if match is None or computation not in times:
            continue
        kind, groups = match["kind"], _groups(match["rest"])
        devices = 2 if groups is None else groups.shape[1]
        if devices < 2:
            continue
        result = _arrays(match["type"])
        if match["start"] and len(result) > 1:  # an asynchronous operation returns its operands too
            result = result[len(result) // 2 :] if kind != "collective-permute" else result[1:2]
        size = sum(size for _, size in result) * (devices if kind == "reduce-scatter" else 1)
        axes = _axes(groups if groups is not None else _pairs(match["rest"]), mesh)
        shapes = " ".join(shape for shape, _ in result)
        count, in_loop = times[computation]
        found.append(Collective(kind, axes, devices, size, count, in_loop, shapes))
    return found


def traffic_by_axes(rows: list[Collective]) -> dict[tuple[str, str], float]:
    """The bytes that a device sends in one step, by the axes (joined by ``+``) and the kind."""
    sums: dict[tuple[str, str], float] = {}
    for row in rows:
        place = "+".join(row.axes), row.kind
        sums[place] = sums.get(place, 0.0) + row.traffic
    return sums


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """Each instruction, with the name of its computation."""
    computation = ""
    for line in text.splitlines():
        if not line.startswith(" "):
            match = _COMPUTATION.match(line)
            computation = ("ENTRY " if line.startswith("ENTRY") else "") + match[1] if match else computation
        else:
            yield computation, line


def _times(lines: list[tuple[str, str]]) -> dict[str, tuple[int, bool]]:
    """The number of runs of each computation, and whether it is in a loop; those that nothing calls are left out."""
    calls: dict[str, list[tuple[str, int, bool]]] = {}
    for computation, line in lines:
        trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
        loop = " while(" in line
        for names in _CALLED.findall(line):
            for name in re.findall(r"[\w.\-]+", names):
                calls.setdefault(computation, []).append((name, int(trips[1]) if trips else 1, loop))
    found: dict[str, tuple[int, bool]] = {}
    waiting = [(name, 1, False) for name in {name for name, _ in lines} if name.startswith("ENTRY ")]
    while waiting:
        name, count, in_loop = waiting.pop()
        before, was = found.get(name, (0, False))
        found[name] = (before + count, was or in_loop)
        waiting += [(other, count * trips, in_loop or loop) for other, trips, loop in calls.get(name, [])]
    return found


def _arrays(text: str) -> list[tuple[str, int]]:
    """The arrays of a type and their bytes."""
    found = []
    for dtype, sizes in _ARRAY.findall(text):
        bits = _BITS.get(dtype) or int(re.sub(r"\D", "", dtype))
        count = math.prod(int(n) for n in sizes.split(",") if n)
        found.append((f"{dtype}[{sizes}]", count * bits // 8))
    return found


def _groups(text: str) -> np.ndarray | None:
    """The groups of devices, ``[groups, devices]``, in any of XLA's notations; None for a permutation."""
    if match := re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", text):
        return np.array([[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d, ]+)\}", match[1])])
    if match := re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", text):
        return _devices(match[2]).reshape(_numbers(match[1]))
    if match := re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?)\)\)?)? \{(.*?)\}", text):
        names, sizes = zip(*re.findall(r"'(\w+)'=(\d+)", match[1]), strict=True)
        order = match[2] + ")" if match[2] and match[2].count("(") > match[2].count(")") else match[2]
        ids = np.arange(math.prod(map(int, sizes))) if order is None else _devices(order)
        inner = [names.index(name) for name in re.findall(r"'(\w+)'", match[3])]
        outer = [i for i in range(len(names)) if i not in inner]
        ids = ids.reshape([int(n) for n in sizes]).transpose(*outer, *inner)
        return ids.reshape(-1, math.prod(int(sizes[i]) for i in inner))
    return None


def _devices(text: str) -> np.ndarray:
    """``[2,4]T(1,0)``: the numbers 0 to 7, reshaped and transposed."""
    shape = _numbers(re.findall(r"\[([\d,]+)\]", text)[0])
    ids = np.arange(math.prod(shape)).reshape(shape)
    order = re.search(r"T\(([\d,]+)\)", text)
    return (ids.transpose(_numbers(order[1])) if order else ids).reshape(-1)


def _pairs(text: str) -> np.ndarray:
    """The sources and targets of a permutation, as groups of two."""
    match = re.search(r"source_target_pairs=\{(.*?)\}\}", text)
    return np.array([[int(n) for n in pair] for pair in re.findall(r"(\d+),(\d+)", match[1] + "}")] if match else [[0]])


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def _axes(groups: np.ndarray, mesh: Mesh) -> tuple[str, ...]:
    """The axes along which the devices of a group differ."""
    places = np.stack(np.unravel_index(groups, tuple(mesh.shape.values())))
    differs = (places != places[:, :, :1]).any(axis=(1, 2))
    return tuple(name for name, yes in zip(mesh.shape, differs, strict=True) if yes)
