"""An accelerator in one command: checks of the ops, cuDNN's forms, training steps in bfloat16, throughput, figures.

    make accelerator                                          # within 10 minutes on one GPU
    python benchmarks/accelerator.py --minutes 30             # with more of the throughput cases
    python benchmarks/accelerator.py --parts ops cudnn        # some parts
    python benchmarks/accelerator.py --quick                  # on a CPU, about a minute; writes nothing

- ``ops``: values and gradients of the ops against float64 (``accelerator_ops.py``).
- ``cudnn``: the same for what cuDNN computes, larger, with times beside the other forms; ``auto`` must take cuDNN.
- ``training``: whole steps in bfloat16 with model FLOPs utilisation, against torch where it is installed
  (``training_step.py --precision bfloat16``).
- ``throughput``, ``decoding``: every mixer, as many lengths as fit in the time (``throughput.py --preset gpu``).
- ``figures``: of the training steps; throughput draws its own.

Each part runs in a process of its own with a time limit: its share of the time that is left. A part that fails does
not end the others. The rows go to ``benchmarks/results``, in files named by device. The exit code is 1 if a part
failed: its process did, it ran out of time, or a row of jaxseq holds an error other than too little memory.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent
RESULTS = BENCHMARKS / "results"
TRAINED = ("transformer-768-12-16-1024-50304", "lstm-1024-2-64-256", "demo")
"""GPT-2's size, a stack of LSTMs, the default language model."""
PEERS = ("torch", "flax")
GRACE_S = 20.0
"""Of a part's time, for what it does after its last case."""


@dataclass(frozen=True)
class Job:
    """The folder, device and size that a part is run for."""

    folder: Path
    device: str
    quick: bool

    def file(self, name: str) -> Path:
        """The rows of a benchmark."""
        return self.folder / f"{name}-{self.device}.jsonl"


@dataclass(frozen=True)
class Part:
    """A command of the benchmarks and the time for it."""

    weight: float
    """Its share of the time, relative to the other parts' weights."""
    command: Callable[[Job, float], list[str]]
    """The words of the command for a job and a limit in seconds, beginning with the script's name."""
    file: str | None = None
    """The name of the rows that it must write."""
    cuda: bool = False
    """Whether it needs a CUDA device."""


@dataclass(frozen=True)
class Outcome:
    """The result of a part."""

    result: str
    """ok, failed or skipped."""
    seconds: float
    why: str = ""


def ops(job: Job, seconds: float, part: str = "ops") -> list[str]:
    """The ops, or cuDNN's forms."""
    out = job.file(f"accelerator_{part}")
    return ["accelerator_ops.py", "--part", part, "--out", str(out), *(["--quick"] if job.quick else [])]


def training(job: Job, seconds: float) -> list[str]:
    """Training steps in bfloat16."""
    cases = ["transformer-64-1-2-16"] if job.quick else TRAINED
    names = ["jaxseq"] if job.quick else ["jaxseq", "jaxseq: forward", "torch", "torch.compile"]
    out = job.file("training_step_bfloat16")
    return ["training_step.py", "--precision", "bfloat16", "--profile", "--repeats", "3" if job.quick else "20",
            "--case", *cases, "--only", *names, "--out", str(out)]  # fmt: skip


def throughput(job: Job, seconds: float, mode: str = "forward+backward") -> list[str]:
    """The mixers at constant tokens; decoding is added to the same file."""
    out, limit = job.file("throughput"), max(1.0, seconds - GRACE_S)
    sizes = ["--preset", "gpu", "--dtypes", "bfloat16", "--axis", "tokens"]
    if job.quick:
        sizes = ["--mixers", "mingru", "attention", "--lengths", "32", "--widths", "8", "--batch", "2",
                 "--repeats", "3", "--check-length", "8"]  # fmt: skip
    append = ["--append"] if mode == "decode" else []
    return ["throughput.py", *sizes, "--modes", mode, "--limit-s", f"{limit:.0f}", "--out", str(out), *append]


def figures(job: Job, seconds: float) -> list[str]:
    """The figure of the training steps."""
    rows = job.file("training_step_bfloat16")
    return ["training_step_plots.py", str(rows), str(rows.with_suffix(".png"))]


PARTS = {
    "ops": Part(3.0, ops, "accelerator_ops"),
    "cudnn": Part(2.0, lambda job, seconds: ops(job, seconds, "cudnn"), "accelerator_cudnn", cuda=True),
    "training": Part(4.0, training, "training_step_bfloat16"),
    "throughput": Part(3.0, throughput, "throughput"),
    "decoding": Part(1.2, lambda job, seconds: throughput(job, seconds, "decode"), "throughput"),
    "figures": Part(0.2, figures),
}


def run_part(part: Part, job: Job, seconds: float) -> Outcome:
    """Run the part's process for at most ``seconds``, and read the rows that it wrote."""
    if part.cuda and job.device.startswith("cpu"):
        return Outcome("skipped", 0.0, "no CUDA device")
    start, before = time.monotonic(), read_lines(part, job)
    script, *arguments = part.command(job, seconds)
    words = [sys.executable, str(BENCHMARKS / script), *arguments]
    process = subprocess.Popen(words, env=environment(), start_new_session=True)
    why = []
    try:
        if code := process.wait(seconds):
            why.append(f"exit code {code}")
    except subprocess.TimeoutExpired:
        why.append(f"stopped after {seconds:.0f} s")
    finally:
        end(process)
    lines = read_lines(part, job)
    new = lines[len(before) :] if lines[: len(before)] == before else lines
    if part.file is not None:
        why += wrong_rows(new)
    return Outcome("failed" if why else "ok", time.monotonic() - start, "; ".join(why))


def environment() -> dict[str, str]:
    """This checkout comes first; torch needs memory beside JAX, which would take three quarters of the GPU's."""
    paths = [str(BENCHMARKS.parent), str(BENCHMARKS), os.environ.get("PYTHONPATH", "")]
    return {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.6", **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def read_lines(part: Part, job: Job) -> list[str]:
    """The lines of the part's file, none if there is no file."""
    file = job.file(part.file) if part.file else None
    return file.read_text().splitlines() if file and file.exists() else []


def end(process: subprocess.Popen) -> None:
    """Kill the process and what it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def wrong_rows(lines: Sequence[str]) -> list[str]:
    """The errors in the rows of jaxseq, without those of too little memory and those of peers."""
    if not lines:
        return ["no new rows"]
    rows = [json.loads(line) for line in lines]
    errors = [
        f"{row['name']}: {row['error']}"
        for row in rows
        if not row.get("error", "out of memory").startswith("out of memory") and not row["name"].startswith(PEERS)
    ]
    return [f"{len(errors)} of {len(rows)} rows, the first {errors[0]}"] if errors else []


def run_parts(parts: dict[str, Part], job: Job, seconds: float) -> dict[str, Outcome]:
    """Run the parts one after another; each may take its share, by weight, of the time that is left."""
    end_s, outcomes = time.monotonic() + seconds, {}
    weights = [part.weight for part in parts.values()]
    for index, (name, part) in enumerate(parts.items()):
        share = (end_s - time.monotonic()) * weights[index] / sum(weights[index:])
        print(f"\n=== {name}: at most {share:.0f} s", flush=True)
        try:
            outcomes[name] = run_part(part, job, share)
        except Exception as error:  # the others still run
            outcomes[name] = Outcome("failed", 0.0, f"{type(error).__name__}: {error}")
    return outcomes


def find_device() -> str:
    """The device's name as the results' files have it, asked in a process of its own (this one must not take memory).

    Raises:
        RuntimeError: JAX does not start, and why.
    """
    code = "from harness import device_name; print(device_name())"
    words = [sys.executable, "-c", code]
    asked = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    if asked.returncode:
        raise RuntimeError(f"JAX does not start: {asked.stderr.strip().splitlines()[-1:]}")
    return asked.stdout.split()[-1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts, print what became of them; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run (default: %(default)s)"
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="minutes for all parts (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, on a CPU too")
    parser.add_argument("--results", type=Path, help="folder of the rows; --quick writes none without it")
    options = parser.parse_args(arguments)
    if not options.minutes > 0:
        parser.error(f"--minutes must be above 0, not {options.minutes}")
    start = time.monotonic()
    try:
        device = find_device()
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    if device.startswith("cpu") and not options.quick:
        sys.exit(f"error: JAX has no accelerator here, only {device}; --quick runs on it")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.results or (Path(temporary) if options.quick else RESULTS)
        folder.mkdir(parents=True, exist_ok=True)
        parts = {name: PARTS[name] for name in PARTS if name in options.parts}
        job = Job(folder.resolve(), device, options.quick)
        outcomes = run_parts(parts, job, 60 * options.minutes - (time.monotonic() - start))
    print(f"\n{device}, {time.monotonic() - start:.0f} s")
    for name, outcome in outcomes.items():
        print(f"  {name:12}{outcome.result:9}{outcome.seconds:6.0f} s  {outcome.why}")
    return int(any(outcome.result == "failed" for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
