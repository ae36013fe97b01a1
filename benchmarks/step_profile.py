"""A training step by part, from a profile: where the time of embedding, projections, attention, optimizer, ... goes.

XLA names every operation that it runs after an instruction of the compiled program, and the instruction's metadata
holds the path of the Python function that made it, ``jit(train_step)/transpose(jvp(LanguageModel))/core/.../Dense_0``:
the module, and whether it is the forward (``jvp``) or the backward pass (``transpose``). What belongs to neither is
clipping and the optimizer.

Instructions that XLA adds have no path. A reduction that XLA splits takes the path of its second half, which reads it;
anything else (a copy) takes the path of what it reads, then of what reads it; the rest is ``unnamed``.

Times are those of the threads that run the operations, without the operations inside them (the event of a ``while``
spans those of its body that run in the same thread). Threads that run side by side add up to more than wall-clock time;
the work that one operation hands to other threads is not added. The wall-clock time in which no operation is recorded
is ``no operation``: the start of a call, gaps, and work that XLA does not wait for in the event (a CPU's convolutions).
"""

import collections
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

Row = dict[str, Any]

PARTS = (
    "embedding",
    "dropout",
    "norms",
    "projections",
    "attention",
    "recurrence",
    "feed-forward",
    "head and loss",
    "clip and optimizer",
    "rest",
    "unnamed",
    "no operation",
)

INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = ")
HEADER = re.compile(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
REFERENCE = re.compile(r"%([\w.\-]+)")
OP_NAME = re.compile(r'op_name="([^"]*)"')
CALLED = re.compile(r"calls=%?([\w.\-]+)")

PROJECTIONS = re.compile(r"_project$|^(query|key|value|in|out|B|C)$|^Dense_\d+$")
"""Linear layers before and after attention or a recurrence; an LSTM's own projection is in its recurrence."""


class Instruction(NamedTuple):
    """An instruction of a compiled program."""

    path: str
    """That of its metadata; empty if it has none."""
    operands: tuple[str, ...]
    called: str | None
    """The computation that a fusion runs."""


class Event(NamedTuple):
    """An operation that ran: its instruction, and its start and duration in nanoseconds."""

    name: str
    start: float
    duration: float


def breakdown(executable: Any, run: Callable[[], Any], repeats: int) -> list[Row]:
    """Profile ``repeats`` calls of ``run``, which executes ``executable`` once and waits for it.

    Returns:
        A row for each part and pass that takes time, the longest first: ``part`` (of ``PARTS``), ``pass`` (``forward``,
        ``backward`` or ``update``), ``seconds`` a call, and ``share`` of their sum.

    Raises:
        RuntimeError: the profile holds none of the program's operations.
    """
    text = executable.as_text()
    module = text.partition(",")[0].removeprefix("HloModule ").strip()
    instructions = parse_program(text)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            start = time.perf_counter()
            for _ in range(repeats):
                run()
            wall = time.perf_counter() - start
        (file,) = Path(folder).rglob("*.xplane.pb")
        lines = _events(jax.profiler.ProfileData.from_file(str(file)), module, instructions)
    totals: dict[tuple[str, str], float] = collections.defaultdict(float)
    users = users_of(instructions)
    for line in lines:
        for name, nanoseconds in self_times(line).items():
            totals[part_of(path_of(name, instructions, users))] += nanoseconds / repeats / 1e9
    if not totals:
        raise RuntimeError(f"the profile holds no operation of {module}")
    totals["no operation", "update"] = (
        max(0.0, wall - covered(event for line in lines for event in line) / 1e9) / repeats
    )
    whole = sum(totals.values())
    ordered = sorted(totals.items(), key=lambda item: -item[1])
    return [{"part": part, "pass": way, "seconds": s, "share": s / whole} for (part, way), s in ordered]


def parse_program(text: str) -> dict[str, Instruction]:
    """The instructions by name, with those of fused computations; the text is ``executable.as_text()``.

    A fusion without a path gets the first one of the computation that it calls.
    """
    instructions: dict[str, Instruction] = {}
    inside: dict[str, str] = {}
    computation = ""
    for line in text.splitlines():
        if header := HEADER.match(line):
            computation = header.group(1)
        if not (found := INSTRUCTION.match(line)):
            continue
        body = line[found.end() :]
        named = OP_NAME.search(body)
        path = named.group(1) if named and named.group(1).startswith("jit(") else ""  # parameters have names of theirs
        inside[computation] = inside.get(computation) or path
        called = CALLED.search(body)
        operands = REFERENCE.findall(body.partition("), ")[0])
        instructions[found.group(1)] = Instruction(path, tuple(operands), called.group(1) if called else None)
    return {
        name: one if one.path or one.called is None else one._replace(path=inside.get(one.called, ""))
        for name, one in instructions.items()
    }


def _events(profile: Any, module: str, instructions: Mapping[str, Instruction]) -> list[list[Event]]:
    """The events of the program, a list for each thread, or for each stream of an accelerator."""
    found: dict[bool, list[list[Event]]] = {True: [], False: []}
    for plane in profile.planes:
        of_device = plane.name.startswith("/device:")
        for line in plane.lines:
            events = []
            for event in line.events:
                # jaxlib 0.12 ends the process at the statistics of some events of the host.
                stats = dict(event.stats) if of_device else {}
                name = stats.get("hlo_op", event.name)  # a GPU's events have the names of kernels
                if name in instructions and stats.get("hlo_module", module) == module:
                    events.append(Event(name, event.start_ns, event.duration_ns))
            found[of_device].append(events)
    on_device = [events for events in found[True] if events]
    return on_device or found[False]  # beside an accelerator the host's events are the launches


def self_times(events: Iterable[Event]) -> dict[str, float]:
    """Nanoseconds by instruction, of one thread, without the time of events inside an event."""
    own: dict[str, float] = collections.defaultdict(float)
    open_events: list[Event] = []
    for event in sorted(events, key=lambda event: (event.start, -event.duration)):
        while open_events and open_events[-1].start + open_events[-1].duration <= event.start:
            open_events.pop()
        if open_events:
            own[open_events[-1].name] -= event.duration
        own[event.name] += event.duration
        open_events.append(event)
    return own


def covered(events: Iterable[Event]) -> float:
    """Nanoseconds in which at least one of the events runs."""
    total, until = 0.0, float("-inf")
    for event in sorted(events, key=lambda event: event.start):
        stop = event.start + event.duration
        total += max(0.0, stop - max(event.start, until))
        until = max(until, stop)
    return total


def users_of(instructions: Mapping[str, Instruction]) -> dict[str, list[str]]:
    """The instructions that read each one."""
    users: dict[str, list[str]] = collections.defaultdict(list)
    for name, instruction in instructions.items():
        for operand in instruction.operands:
            users[operand].append(name)
    return users


def path_of(name: str, instructions: Mapping[str, Instruction], users: Mapping[str, list[str]]) -> str:
    """The path of an instruction, or of the nearest one with a path: what it reads, else what reads it.

    A ``reduce-window`` is the first half of a reduction: the second half, which reads it, comes first.
    """
    if instructions[name].path:
        return instructions[name].path
    ways: list[Callable[[str], Iterable[str]]] = [
        lambda other: instructions[other].operands,
        lambda other: users.get(other, ()),
    ]
    if "reduce-window" in name:
        ways.reverse()
    return next((path for way in ways if (path := _nearest(name, instructions, way))), "")


def _nearest(name: str, instructions: Mapping[str, Instruction], neighbours: Callable) -> str:
    """The first path that a breadth-first search finds; empty if there is none."""
    seen, queue = {name}, collections.deque([name])
    while queue:
        for other in neighbours(queue.popleft()):
            if other in instructions and other not in seen:
                if instructions[other].path:
                    return instructions[other].path
                seen.add(other)
                queue.append(other)
    return ""


def part_of(path: str) -> tuple[str, str]:
    """The part of the step and the pass that a path belongs to."""
    path = path.partition(";")[0]  # one instruction may join several
    if not path:
        return "unnamed", "update"
    if "jvp(" not in path:
        return "clip and optimizer", "update"
    return _part(path), "backward" if "transpose(jvp" in path else "forward"


def _part(path: str) -> str:
    words = path.split("/")
    first = next(index for index, word in enumerate(words) if "jvp(" in word)  # behind the names of jitted functions
    modules = words[first + 1 : -1]
    if not re.search(r"jvp\(\w*(LanguageModel|EncoderDecoder)", words[first]) or "head" in modules:
        return "head and loss"
    if "embedding" in modules or "positions" in modules:
        return "embedding"
    ops = [word for word in modules if word.startswith("jaxseq.")]
    if ops:
        return "attention" if ops[0].startswith("jaxseq.attention=") else "recurrence"
    if any(word.startswith("Dropout") for word in modules):
        return "dropout"
    if any("norm" in word.lower() for word in modules):
        return "norms"
    if "layer" in modules and "Sublayer" not in path:
        return "norms"  # the last norm is a core of its own
    if "layer" in modules or "feed_forward" in modules:
        return "feed-forward"
    if any(PROJECTIONS.search(word) for word in modules):
        return "projections"
    if any("attention" in word.lower() or "attend" in word for word in modules):
        return "attention"
    return "recurrence" if any(word.endswith(".mix") for word in modules) else "rest"


def table(rows: Iterable[Row]) -> str:
    """The rows as lines of text: a part with its passes in milliseconds."""
    by_part: dict[str, dict[str, float]] = collections.defaultdict(lambda: collections.defaultdict(float))
    for row in rows:
        by_part[row["part"]][row["pass"]] += 1e3 * row["seconds"]
    whole = sum(sum(passes.values()) for passes in by_part.values())
    lines = [f"    {'part':20}{'forward':>10}{'backward':>10}{'update':>10}   share   ({whole:.2f} ms in all)"]
    for part in PARTS:
        if part in by_part:
            times = "".join(f"{by_part[part].get(way, 0.0):10.2f}" for way in ("forward", "backward", "update"))
            lines.append(f"    {part:20}{times}{sum(by_part[part].values()) / whole:8.0%}")
    return "\n".join(lines)
