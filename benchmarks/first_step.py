"""What passes before the first step: compilations and seconds of the README's first block, and of experiments.

    python benchmarks/first_step.py --against ../before            # all cases, about 15 minutes on 2 CPU cores
    python benchmarks/first_step.py --cases demo,gradients
    python benchmarks/first_step.py --table                        # what was measured, in Markdown

Each case runs three times in processes of its own: with an empty compilation cache (cold), the same command again in
another run folder (warm), and with another number of steps (steps). The case ablation counts all processes that it
starts. ``programs`` are those that JAX asks XLA for, ``compiled`` those of them that the cache lacks. CPU seconds of a
process and its children are counted from its start, imports included; they depend less than those of the clock on
what else the machine does. The first step ends when its metrics are read. The checkout ``--against``, labelled before,
takes turns with this one, labelled after. The case gradients compiles the gradient of a GRU and an LSTM (32 rows, 128
steps, 256 units) here and in flax's ``nn.RNN``, in turn in one process, and has CPU seconds of its phases, the least of
seven. Rows go to benchmarks/results/first_step-DEVICE.jsonl, and replace those of the same label, case and run.
"""

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STEPS, OTHER_STEPS = 20, 30
RUNS = ("cold", "warm", "steps")
LABELS = ("before", "after")
IDENTITY = ("case", "run", "label", "cell", "name")
"""The fields that tell a row from others."""
WARMUP = ["--optimizer.warmup-steps", "5"]
"""Shorter than the runs: the decay of the learning rate depends on their length."""
ABLATION = (
    ["--base", "core=gru", "features=64", "samples=0", "train.steps={steps}", "optimizer.warmup_steps=5"],
    ["--vary", "optimizer.learning_rate=4e-3", "--seeds", "2"],
)
CASES: dict[str, list[str]] = {
    "readme": [],
    "readme-unjitted": [],
    "demo": ["--train.steps", "{steps}", *WARMUP],
    "translation": ["--train.steps", "{steps}", *WARMUP],
    "captioning": ["--train.steps", "{steps}", *WARMUP, "--cache", "{cache}"],
    "gradients": [],
    "ablation": [word for part in ABLATION for word in part],
}
"""The arguments of an experiment, without its run folder. The blocks of the README have none."""
EXPERIMENTS = {"demo": "language_model"}
BACKEND, HIT = "/jax/core/compile/backend_compile_duration", "/jax/compilation_cache/cache_hits"
PHASES = {
    "trace_s": "/jax/core/compile/jaxpr_trace_duration",
    "lower_s": "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "backend_s": BACKEND,
}


class Counter:
    """Counts the programs of this process from JAX's own events; ``first`` is the state after the first step."""

    def __init__(self, began: float):
        import jax

        self.began, self.first = began, dict[str, float]()
        self.counts = {"programs": 0, "hits": 0} | dict.fromkeys(PHASES, 0.0)
        self.named: list[tuple[float, str]] = []
        jax.monitoring.register_event_duration_secs_listener(self._duration)
        jax.monitoring.register_event_listener(self._event)

    def _duration(self, event: str, duration_secs: float, **more: Any) -> None:
        for name, known in PHASES.items():
            self.counts[name] += duration_secs if event == known else 0.0
        if event == BACKEND:
            self.counts["programs"] += 1
            self.named.append((round(duration_secs, 3), str(more.get("fun_name"))))

    def _event(self, event: str, **more: Any) -> None:
        self.counts["hits"] += event == HIT

    def now(self) -> dict[str, float]:
        """Counts and seconds since the process was started."""
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        cpu = sum(part.ru_utime + part.ru_stime for part in used)
        compiled = self.counts["programs"] - self.counts["hits"]
        return {**self.counts, "compiled": compiled, "cpu_s": cpu, "wall_s": time.time() - self.began}

    def mark_first_step(self, function: Callable) -> Callable:
        """The function, whose first call marks the end of the first step."""

        def marked(*args: Any, **options: Any) -> Any:
            self.first = self.first or self.now()
            return function(*args, **options)

        return marked


def child(case: str, checkout: Path, output: Path, began: float, arguments: list[str]) -> None:
    """Run one case in this process, and write its counts."""
    import jaxseq
    from jaxseq.training.metrics import MetricAccumulator

    assert Path(jaxseq.__file__).is_relative_to(checkout), jaxseq.__file__
    if case == "gradients":
        measure_gradients(output)
        return
    counter = Counter(began)
    MetricAccumulator.add = counter.mark_first_step(MetricAccumulator.add)  # type: ignore[method-assign]
    inner: list[dict[str, Any]] = []
    if case.startswith("readme"):
        run_readme(checkout, jitted=case == "readme")
    else:
        run_experiment(case, checkout, arguments, inner)
    end = counter.now()
    for name in ("programs", "hits", "compiled", *PHASES):
        end[name] += sum(row[name] for row in inner)
    row: dict[str, Any] = {**end, **{f"first_{name}": value for name, value in counter.first.items()}}
    if inner:
        row["runs_compiled"] = [row["compiled"] for row in inner]
        row["runs_cpu_s"] = [round(row["cpu_s"], 2) for row in inner]
    output.write_text(json.dumps(row))
    if os.environ.get("FIRST_STEP_NAMES"):
        print("\n".join(f"{seconds:8.3f} {name}" for seconds, name in counter.named))


def run_readme(checkout: Path, *, jitted: bool) -> None:
    """The first block of the README; without jit, ``core.init`` and ``core.apply`` run operation by operation."""
    block = re.findall(r"```python\n(.*?)```", (checkout / "README.md").read_text(encoding="utf-8"), re.DOTALL)[0]
    if not jitted:
        block = re.sub(r"jax\.jit\((core\.\w+)\)", r"\1", block)
    exec(compile(block, "README.md", "exec"), {})


def run_experiment(case: str, checkout: Path, arguments: list[str], inner: list[dict[str, Any]]) -> None:
    """The experiment of a case; the runs of an ablation are measured by this program, too, and added to ``inner``."""
    name = EXPERIMENTS.get(case, case)
    file = checkout / "experiments" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.argv = [str(file), *arguments]
    spec.loader.exec_module(module)

    def execute(arguments: list[str], log: Path) -> None:
        inner.append(measure("ablation", checkout, arguments, log))

    if name == "ablation" and "--single" not in arguments:
        module.execute = execute
    from jaxseq import training
    from jaxseq.training import run_cli

    options: dict[str, Any] = {"repeatable": ("vary", "metric")} if name == "ablation" else {}
    config: Any = module.Config
    if name in ("translation", "captioning"):
        import tyro

        config = tyro.conf.CascadeSubcommandArgs[config]
    assert training.run_cli is run_cli
    run_cli(module.main, config, module.__doc__, **options)


def measure(case: str, checkout: Path, arguments: list[str], log: Path) -> Any:
    """The counts of a case in a process of its own.

    Raises:
        RuntimeError: the process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "counts.json"
        command = [sys.executable, __file__, "--child", case, str(checkout), str(output), str(time.time()), *arguments]
        environment = os.environ | {"PYTHONPATH": str(checkout), "JAX_PLATFORMS": "cpu"}
        with open(log, "ab") as stream:
            done = subprocess.run(command, env=environment, stdout=stream, stderr=subprocess.STDOUT, check=False)
        if done.returncode:
            lines = log.read_text(errors="replace").strip().splitlines()
            raise RuntimeError(f"{case}: exit code {done.returncode}: {lines[-1] if lines else ''} ({log})")
        return json.loads(output.read_text())


def measure_gradients(output: Path) -> None:
    """CPU seconds of tracing, lowering and compiling each gradient, and the lines of its program."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    from jaxseq.cores import CORES

    xs = jnp.ones((32, 128, 256))

    def ours(name: str) -> tuple[Callable, tuple]:
        make: Any = CORES[name]
        core = make(features=256)
        carry = core.initial_carry((32,))
        variables = jax.jit(core.init)(jax.random.key(0), carry, xs)
        return lambda v, xs: jnp.sum(core.apply(v, carry, xs)[1] ** 2), (variables, xs)

    def flax(cell: Any) -> tuple[Callable, tuple]:
        rnn = nn.RNN(cell(256))
        variables = jax.jit(rnn.init)(jax.random.key(0), xs)
        return lambda v, xs: jnp.sum(rnn.apply(v, xs) ** 2), (variables, xs)  # type: ignore[operator]

    programs = {("gru", "jaxseq"): ours("gru"), ("gru", "flax"): flax(nn.GRUCell)}
    programs |= {("lstm", "jaxseq"): ours("lstm"), ("lstm", "flax"): flax(nn.OptimizedLSTMCell)}
    seconds: dict[tuple[str, str], list[list[float]]] = {key: [] for key in programs}
    lines: dict[tuple[str, str], int] = {}
    for _ in range(7):
        for key, (loss, arguments) in programs.items():
            jax.clear_caches()
            times = [time.process_time()]
            traced = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).trace(*arguments)
            times.append(time.process_time())
            lowered = traced.lower()
            times.append(time.process_time())
            compiled = lowered.compile()
            times.append(time.process_time())
            lines[key] = compiled.as_text().count(" = ")
            seconds[key].append([after - before for before, after in itertools.pairwise(times)])
    rows = []
    for (cell, name), measured in seconds.items():
        phases = dict(zip(("trace_s", "lower_s", "backend_s"), map(min, zip(*measured, strict=True)), strict=True))
        rows.append(
            {"cell": cell, "name": name, **phases, "cpu_s": min(map(sum, measured)), "instructions": lines[cell, name]}
        )
    output.write_text(json.dumps(rows))


def measure_case(case: str, checkouts: dict[str, Path], kept: Path) -> Iterator[dict[str, Any]]:
    """The rows of the runs of a case; the checkouts take turns."""
    for label in checkouts:
        shutil.rmtree(kept / label / case, ignore_errors=True)
        (kept / label / case).mkdir(parents=True)
    for run in ("cold",) if case == "gradients" else RUNS[:2] if case.startswith("readme") else RUNS:
        for label, checkout in checkouts.items():
            folder, steps = kept / label / case, OTHER_STEPS if run == "steps" else STEPS
            cache = "" if case == "gradients" else str(folder / "xla")
            os.environ |= {"JAXSEQ_COMPILATION_CACHE": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
            os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
            if case.startswith("readme"):  # the block is no run, which would open the cache
                os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
            given = [word.format(steps=steps, cache=kept / "features") for word in CASES[case]]
            given += [] if case in ("readme", "readme-unjitted", "gradients") else ["--run", str(folder / run)]
            counts = measure(case, checkout, given, folder / f"{run}.txt")
            for found in counts if isinstance(counts, list) else [counts]:
                row = {"case": case, "run": run, "label": label, "steps": steps, **found}
                yield {name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()}


def results_file() -> Path:
    """The file of the rows, named by the device."""
    from harness import RESULTS, device_name

    return RESULTS / f"first_step-{device_name()}.jsonl"


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows that were measured before."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def format_table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown: what is before the first step, and the whole run; then the gradients."""
    lines = [
        "| case | run | compiled programs | CPU s to the first step | CPU s in all |",
        "|---|---|---|---|---|",
    ]

    def cell(found: list[dict[str, Any]], name: str) -> str:
        values = [row.get(name) for row in found]
        return " → ".join("-" if v is None else f"{v:.1f}" if isinstance(v, float) else str(v) for v in values)

    for case in CASES:
        for run in RUNS if case != "gradients" else ():
            labels = {row["label"]: row for row in rows if (row["case"], row["run"]) == (case, run)}
            found = [labels[label] for label in LABELS if label in labels]
            if found:
                cells = [cell(found, name) for name in ("compiled", "first_cpu_s", "cpu_s")]
                lines.append(f"| {case} | {run} | {' | '.join(cells)} |")
    lines += ["", "| gradient | trace s | lower s | XLA s | CPU s | instructions |", "|---|---|---|---|---|---|"]
    for row in (row for row in rows if row["case"] == "gradients"):
        seconds = " | ".join(f"{row[name]:.2f}" for name in ("trace_s", "lower_s", "backend_s", "cpu_s"))
        lines.append(f"| {row['cell']}, {row['name']} ({row['label']}) | {seconds} | {row['instructions']:,} |")
    return "\n".join(lines)


def main() -> None:
    """Measure the cases, write their rows, print the table."""
    if sys.argv[1:2] == ["--child"]:
        case, checkout, output, began, *arguments = sys.argv[2:]
        child(case, Path(checkout), Path(output), float(began), arguments)
        return
    from harness import environment, parse_arguments

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES), help="names, separated by commas (default: %(default)s)")
    parser.add_argument("--against", type=Path, help="another checkout that takes turns with this one")
    parser.add_argument("--keep", type=Path, help="keep run folders, caches and outputs in this folder")
    parser.add_argument("--table", action="store_true", help="print what was measured, and measure nothing")
    options = parse_arguments(parser)
    unknown = [case for case in options.cases.split(",") if case not in CASES]
    if unknown:
        parser.error(f"unknown case {unknown[0]!r}; known: {', '.join(CASES)}")
    file = results_file()
    checkouts = {"before": options.against, "after": ROOT} if options.against else {"after": ROOT}
    checkouts = {label: path.resolve() for label, path in checkouts.items()}
    with contextlib.ExitStack() as stack:
        kept = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for case in [] if options.table else options.cases.split(","):
            for row in measure_case(case, checkouts, kept.resolve()):
                print(json.dumps(row), flush=True)
                rows = [old for old in read_rows(file) if any(old.get(n) != row.get(n) for n in IDENTITY)]
                rows.append(row | environment())
                file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    print(format_table(read_rows(file)))


if __name__ == "__main__":
    main()
