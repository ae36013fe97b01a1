"""Seconds to save a checkpoint, to restore it, and to load a run folder, with the parts that they are made of.

    python benchmarks/run_folder.py                                  # 10 MB and 1 GB of parameters, a few minutes
    python benchmarks/run_folder.py --against ../before              # the same with another checkout, in turn
    python benchmarks/run_folder.py --megabytes 10 --turns 5
    python benchmarks/run_folder.py --table                          # what was measured, in Markdown

The state is a language model's with Adam's moments, three times its parameters, of random numbers, which no store can
compress. Each turn is a process of its own, one at a time, since 1 GB of parameters take 12 GB of memory; the checkouts
take turns, the first place going round. In each turn what is restored is compared with what was saved, bit for bit,
before anything is timed. Files are read from the system's page cache, so that the figures are those of the code and not
of a disk; what is written is flushed where the code flushes it. Rows go to benchmarks/results/run_folder-DEVICE.jsonl,
one a size and checkout, with medians over all turns; rows of other sizes are kept.
"""

import argparse
import contextlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from harness import RESULTS, Row, device_name, environment, parse_arguments

from jaxseq import data, pipelines, training
from jaxseq.models.configs import LanguageModelConfig
from jaxseq.training import checkpoints

LAYERS = 4
PARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "save": {
        "copy to host": ("host_copy",),
        "hash leaves": ("leaf_rows",),
        "Orbax writes": ("write_arrays",),
        "hash files": ("describe_files",),
        "manifest": ("make_manifest", "write_json"),
    },
    "restore": {
        "manifest": ("read_entry",),
        "hash files": ("verify_files",),
        "Orbax reads": ("read_arrays",),
        "hash leaves": ("verify_leaf",),
    },
}
"""Of an operation: its parts, each the functions that ``training.checkpoints`` calls for it."""


class Case(NamedTuple):
    """A run folder that is open, and the state that is saved to it."""

    run: training.Run
    store: training.Checkpoints
    state: training.TrainState


@contextlib.contextmanager
def timed(seconds: dict[str, float], owner: Any, names: Sequence[str], label: str) -> Iterator[None]:
    """Add the seconds in functions of a module or class to ``seconds[label]``."""
    seconds.setdefault(label, 0.0)
    before = {name: getattr(owner, name) for name in names}

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                seconds[label] += time.perf_counter() - start

        return call

    for name, function in before.items():
        setattr(owner, name, wrap(function))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(owner, name, function)


def features_of(parameter_bytes: float) -> int:
    """The width of a model of LAYERS Elman layers with about so many bytes of parameters, in float32."""
    return max(2, round(math.sqrt(parameter_bytes / 4 / (2 * LAYERS))))


def prepare(folder: Path, parameter_bytes: float) -> Case:
    """Make a run folder with a model, and a state of random numbers."""
    config = LanguageModelConfig(core="elman", features=features_of(parameter_bytes), layers=LAYERS, block="none")
    generator = pipelines.TextGenerator(config, data.Characters("abcdefgh"), attention_lookback=0)
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), generator.parameter_shapes())
    optimizer = training.make_optimizer(training.OptimizerConfig(), 10)
    state = training.create_state(params, optimizer, key=jax.random.key(0))
    state = jax.tree.map(
        lambda x: jax.device_put(random.random(x.shape, np.float32)) if x.dtype == np.float32 else x, state
    )
    run = training.Run.open(folder / "run", config, fingerprint="random")
    generator.save(run)
    # Older checkouts have no provenance.
    options: dict[str, Any] = {"provenance": run.provenance} if hasattr(run, "provenance") else {}
    return Case(run, training.Checkpoints(run.checkpoints, max_to_keep=1, **options), state)


def one_round(case: Case, step: int) -> dict[str, float]:
    """Seconds of each operation and of its parts, and the CPU seconds of all its threads."""
    seconds: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        for part, names in PARTS["save"].items():
            stack.enter_context(timed(seconds, checkpoints, names, f"save: {part}"))
        stack.enter_context(clocks(seconds, "save"))
        start = time.perf_counter()
        case.store.save(step, case.state, {})
        seconds["save: training waits"] = time.perf_counter() - start
        if not case.store.wait():
            raise OSError("the checkpoint could not be written")
    with contextlib.ExitStack() as stack:
        for part, names in PARTS["restore"].items():
            stack.enter_context(timed(seconds, checkpoints, names, f"restore: {part}"))
        stack.enter_context(clocks(seconds, "restore"))
        restored = case.store.restore_latest(case.state)
        jax.block_until_ready(restored)
        del restored
    with timed(seconds, training.SavedRun, ["restore_parameters"], "load_run: parameters"), clocks(seconds, "load_run"):
        loaded = pipelines.load_run(case.run.path, pipelines.TextGenerator)
        jax.block_until_ready(loaded.params)
    seconds["load_run: besides parameters"] = seconds["load_run"] - seconds["load_run: parameters"]
    return seconds


@contextlib.contextmanager
def clocks(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Seconds by the clock, and CPU seconds, which other processes disturb less."""
    start, cpu_start = time.perf_counter(), time.process_time()
    yield
    seconds[name] = time.perf_counter() - start
    seconds[f"{name}: CPU"] = time.process_time() - cpu_start


def check(case: Case) -> None:
    """Save, and compare what is restored and loaded with what was saved; raises ArithmeticError."""
    case.store.save(0, case.state, {})
    restored = case.store.restore_latest(case.state)
    loaded = pipelines.load_run(case.run.path, pipelines.TextGenerator)

    def bits(tree: Any) -> list[np.ndarray]:
        leaves = [x for x in jax.tree.leaves(tree) if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)]
        return [np.asarray(x) for x in leaves]

    for found, saved in ((restored and restored.state, case.state), (loaded.params, case.state.params)):
        if not all(np.array_equal(a, b) for a, b in zip(bits(found), bits(saved), strict=True)):
            raise ArithmeticError("what was restored differs from what was saved")


def work(folder: Path, megabytes: float, rounds: int) -> None:
    """The process of a turn: prints a line with the seconds of each round and the bytes of the state."""
    case = prepare(folder, megabytes * 1e6)
    check(case)
    parameter_bytes, state_bytes = (sum(x.nbytes for x in jax.tree.leaves(t)) for t in (case.state.params, case.state))
    facts = {"parameter_bytes": parameter_bytes, "state_bytes": state_bytes}
    print(json.dumps({"facts": facts, "rounds": [one_round(case, number + 1) for number in range(rounds)]}))


def turn(checkout: Path, folder: Path, megabytes: float, rounds: int) -> Row:
    """The output of the process of a turn with the package of this checkout; raises RuntimeError if it fails."""
    known = {"PYTHONPATH": str(checkout), "JAXSEQ_COMPILATION_CACHE": "", "JAX_PLATFORMS": "cpu"}
    words = [sys.executable, __file__, "--work", str(folder), "--megabytes", str(megabytes), "--rounds", str(rounds)]
    done = subprocess.run(words, env=os.environ | known, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the process has ended with code {done.returncode}: {done.stderr[-300:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(checkouts: dict[str, Path], megabytes: float, turns: int, rounds: int, folder: Path) -> list[Row]:
    """One row a checkout: medians of the seconds of all rounds.

    Raises:
        OSError: too little disk or memory is free.
    """
    state = 3 * megabytes * 1e6
    needs = {"disk": (2.5 * state, shutil.disk_usage(folder).free), "memory": (4 * state, available_memory())}
    for name, (needed, free) in needs.items():
        if free < needed:
            raise OSError(
                f"{megabytes:g} MB of parameters need {needed / 1e9:.1f} GB of {name}; {free / 1e9:.1f} are free"
            )
    found: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    facts: dict[str, Row] = {}
    names = list(checkouts)
    for number in range(turns):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            with tempfile.TemporaryDirectory(dir=folder) as inner:
                made = turn(checkouts[name], Path(inner), megabytes, rounds)
            found[name] += made["rounds"]
            facts[name] = made["facts"]
    return [
        {
            "name": name,
            "commit": commit_of(checkout),
            "megabytes": megabytes,
            "turns": turns,
            "rounds": rounds,
            **facts[name],
            "median_s": medians(found[name]),
            "best_s": {quantity: min(seconds[quantity] for seconds in found[name]) for quantity in found[name][0]},
            **environment(),
        }
        for name, checkout in checkouts.items()
    ]


def available_memory() -> float:
    """Bytes that programs can take; infinite where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return math.inf
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), math.inf)


def medians(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of each quantity."""
    return {name: statistics.median(seconds[name] for seconds in rounds) for name in rounds[0]}


def commit_of(checkout: Path) -> str | None:
    """The commit of a checkout, with ``+changes`` if files of its package differ from it; None without Git."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(checkout), *words], capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--", "jaxseq").strip()
        return git("rev-parse", "--short", "HEAD").strip() + "+changes" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return None


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown: milliseconds of each operation and part, and the ratio to the other checkout."""
    lines = []
    for size in dict.fromkeys(row["megabytes"] for row in rows):
        members = {row["name"]: row for row in rows if row["megabytes"] == size}
        names = list(members)
        heads = [f"{name} ({members[name]['commit']})" for name in names]
        heads += ["ratio"] * (len(names) == 2)
        lines += [
            f"\n{size:g} MB of parameters, milliseconds\n",
            f"| | {' | '.join(heads)} |",
            "|---" * len(heads) + "|---|",
        ]
        for part in members[names[0]]["median_s"]:
            values = [members[name]["median_s"][part] for name in names]
            cells = [f"{1e3 * value:,.1f}" for value in values]
            if len(values) == 2:
                cells.append(f"{values[0] / values[1]:.2f}")
            lines.append(f"| {part} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--megabytes", nargs="+", type=float, default=[10.0, 1000.0], help="of parameters (default: %(default)s)"
    )
    parser.add_argument("--turns", type=int, default=3, help="processes of each size (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each turn (default: %(default)s)")
    parser.add_argument("--against", type=Path, help="another checkout, measured in turn")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir()),
        help="on the disk that is measured (default: %(default)s)",
    )
    parser.add_argument("--table", action="store_true", help="print what was measured; run nothing")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parse_arguments(parser)
    output = RESULTS / f"run_folder-{device_name()}.jsonl"
    if options.work is not None:
        work(options.work, options.megabytes[0], options.rounds)
        return
    if options.table:
        print(table([json.loads(line) for line in output.read_text().splitlines()]))
        return
    checkouts = {"this": Path(__file__).resolve().parents[1]}
    if options.against is not None:
        checkouts["before"] = options.against.resolve()
    rows: list[Row] = []
    for megabytes in options.megabytes:
        rows += measure(checkouts, megabytes, options.turns, options.rounds, options.folder)
        print(table(rows[-len(checkouts) :]), flush=True)
    known = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []
    rows = sorted([row for row in known if row["megabytes"] not in options.megabytes] + rows, key=_size)
    output.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"\nwritten: {output.relative_to(RESULTS.parent.parent)}")


def _size(row: Row) -> float:
    return row["megabytes"]


if __name__ == "__main__":
    main()
