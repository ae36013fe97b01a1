"""What passes before the first step: compilations and seconds of the README's first block, and of experiments.

    python benchmarks/first_step.py                                # all cases, about ten minutes on 2 CPU cores
    python benchmarks/first_step.py --cases demo --checkout ../before --label before
    python benchmarks/first_step.py --table                        # what was measured, in Markdown

Each case runs three times in processes of its own: with an empty compilation cache (cold), the same command again in
another run folder (warm), and with another number of steps (steps). The case ablation counts all processes that it
starts. ``programs`` are those that JAX asks XLA for, ``compiled`` those of them that the cache does not have. CPU seconds
of a process and its children are counted from its start, imports included; they depend less than those of the clock on
what else the machine does. The first step ends when its metrics are read. Rows go to
benchmarks/results/first_step-DEVICE.jsonl, and replace those of the same label, case and run.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import re
import resource
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

    def _duration(self, event: str, seconds: float, **more: Any) -> None:
        for name, known in PHASES.items():
            self.counts[name] += seconds if event == known else 0.0
        if event == BACKEND:
            self.counts["programs"] += 1
            self.named.append((round(seconds, 3), str(more.get("fun_name"))))

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
    counter = Counter(began)
    MetricAccumulator.add = counter.mark_first_step(MetricAccumulator.add)  # type: ignore[method-assign]
    inner: list[dict[str, float]] = []
    if case.startswith("readme"):
        run_readme(checkout, jitted=case == "readme")
    else:
        run_experiment(case, checkout, arguments, inner)
    end = counter.now()
    for name in ("programs", "hits", "compiled", *PHASES):
        end[name] += sum(row[name] for row in inner)
    row = {**end, **{f"first_{name}": value for name, value in counter.first.items()}}
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


def run_experiment(case: str, checkout: Path, arguments: list[str], inner: list[dict[str, float]]) -> None:
    """The experiment of a case; the runs of an ablation are measured by this program, too, and added to ``inner``."""
    name = EXPERIMENTS.get(case, case)
    file = checkout / "experiments" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    sys.argv = [str(file), *arguments]
    spec.loader.exec_module(module)

    def execute(arguments: list[str], log: Path) -> None:
        inner.append(measure("ablation", checkout, arguments, log))

    if name == "ablation" and "--single" not in arguments:
        module.execute = execute
    from jaxseq import training
    from jaxseq.training import run_cli

    options: dict[str, Any] = {"repeatable": ("vary", "metric")} if name == "ablation" else {}
    config = module.Config
    if name in ("translation", "captioning"):
        import tyro

        config = tyro.conf.CascadeSubcommandArgs[config]
    assert training.run_cli is run_cli
    run_cli(module.main, config, module.__doc__, **options)


def measure(case: str, checkout: Path, arguments: list[str], log: Path) -> dict[str, float]:
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
        counts: dict[str, float] = json.loads(output.read_text())
        return counts


def measure_case(case: str, checkout: Path, label: str, kept: Path) -> Iterator[dict[str, Any]]:
    """The rows of the three runs of a case."""
    folder = kept / label / case
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["JAXSEQ_COMPILATION_CACHE"] = str(folder / "xla")
    for run in RUNS:
        steps = OTHER_STEPS if run == "steps" else STEPS
        given = [word.format(steps=steps, cache=kept / "features") for word in CASES[case]]
        if case.startswith("readme"):
            if run == "steps":
                continue
            # The block is no run, which would open the cache.
            os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "xla")
            os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        else:
            given += ["--run", str(folder / run)]
        counts = measure(case, checkout, given, folder / f"{run}.txt")
        row = {"case": case, "run": run, "label": label, "steps": steps}
        yield row | {name: round(value, 3) if isinstance(value, float) else value for name, value in counts.items()}
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        os.environ.pop(name, None)


def results_file() -> Path:
    """The file of the rows, named by the device."""
    from harness import RESULTS, device_name

    return RESULTS / f"first_step-{device_name()}.jsonl"


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows that were measured before."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def format_table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown: what is before the first step, and the whole run."""
    lines = [
        "| case | run | compiled programs | CPU s to the first step | CPU s in all |",
        "|---|---|---|---|---|",
    ]

    def cell(found: list[dict[str, Any] | None], name: str) -> str:
        values = [None if row is None or name not in row else row[name] for row in found]
        return " → ".join("-" if v is None else f"{v:.1f}" if isinstance(v, float) else str(v) for v in values)

    for case in CASES:
        for run in RUNS:
            found = [
                next((row for row in rows if (row["case"], row["run"], row["label"]) == (case, run, label)), None)
                for label in ("before", "after")
            ]
            if any(found):
                cells = [cell(found, name) for name in ("compiled", "first_cpu_s", "cpu_s")]
                lines.append(f"| {case} | {run} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure the cases, write their rows, print the table."""
    if sys.argv[1:2] == ["--child"]:
        case, checkout, output, began, *arguments = sys.argv[2:]
        child(case, Path(checkout), Path(output), float(began), arguments)
        return
    from harness import environment, parse_arguments

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES), help="names, separated by commas: " + ", ".join(CASES))
    parser.add_argument("--checkout", type=Path, default=ROOT, help="the checkout that is measured")
    parser.add_argument("--label", choices=("before", "after"), default="after", help="the name of its rows")
    parser.add_argument("--keep", type=Path, help="keep run folders, caches and outputs in this folder")
    parser.add_argument("--table", action="store_true", help="print what was measured, and measure nothing")
    options = parse_arguments(parser)
    unknown = [case for case in options.cases.split(",") if case not in CASES]
    if unknown:
        parser.error(f"unknown case {unknown[0]!r}; known: {', '.join(CASES)}")
    file = results_file()
    if not options.table:
        with contextlib.ExitStack() as stack:
            kept = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            for case in options.cases.split(","):
                for row in measure_case(case, options.checkout.resolve(), options.label, kept.resolve()):
                    print(json.dumps(row), flush=True)
                    same = [(row[name]) for name in ("case", "run", "label")]
                    rows = [old for old in read_rows(file) if [old[n] for n in ("case", "run", "label")] != same]
                    rows.append(row | environment())
                    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    print(format_table(read_rows(file)))


if __name__ == "__main__":
    main()
