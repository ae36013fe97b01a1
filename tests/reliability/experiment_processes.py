"""Small experiments as processes of their own, as a user starts them, and what they leave."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from jaxseq import training

ROOT = Path(__file__).resolve().parents[2]

LANGUAGE_MODEL = """experiments/language_model.py --core elman --features 8 --batch-size 2 --length 8 --samples 1
    --sample-length 12 --train.steps 6 --train.log-every 2 --train.checkpoint-every 2 --train.ema-decay 0.5
    --train.eval-every 3"""
TRANSLATION = """experiments/translation.py task:reversal --max-string-length 4 model:rnn --smoke --buckets 1
    --train.log-every 2 --train.checkpoint-every 3"""


def command(experiment: str, run: Path, *more: str) -> list[str]:
    """The command of a small run; a warning other than of a checkpoint becomes an error."""
    script, *flags = shlex.split(experiment)
    place = flags.index("task:reversal") if "task:reversal" in flags else 0
    return [sys.executable, str(ROOT / script), *flags[:place], "--run", str(run), *more, *flags[place:]]


def environment(cache: Path) -> dict[str, str]:
    """One compilation cache for all processes, so that a start takes little more than its imports."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    known = {"JAXSEQ_COMPILATION_CACHE": str(cache), "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    return os.environ | known | {"PYTHONDONTWRITEBYTECODE": "1"}


class Ended(NamedTuple):
    """How a process ended."""

    code: int
    out: str
    err: str


def ended(words: list[str], env: dict[str, str], timeout: float = 300) -> Ended:
    """Run to the end; a process that hangs is an error."""
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=timeout, cwd=ROOT, errors="replace")
    return Ended(done.returncode, done.stdout, done.stderr)


def killed(words: list[str], env: dict[str, str], number: int, *, begun: Path | None, delay: float) -> Ended:
    """Send a signal some seconds after the start, or after the file ``begun`` exists."""
    process = subprocess.Popen(
        words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, errors="replace"
    )
    with process:
        limit = time.monotonic() + 300
        while begun is not None and process.poll() is None and not begun.exists() and time.monotonic() < limit:
            time.sleep(0.002)
        time.sleep(delay)
        process.send_signal(number)
        out, err = process.communicate(timeout=300)
    return Ended(process.returncode, out, err)


def results(run: Path) -> dict[str, Any]:
    """The results of a finished run, without those that are times."""
    found = json.loads((run / "results.json").read_text())
    return {name: value for name, value in found.items() if not name.endswith("seconds")}


def checksums(run: Path) -> dict[str, str | None]:
    """The SHA-256 of each leaf of the newest checkpoint; the key of a mapping is the name of the leaf."""
    manifest = sorted((run / "checkpoints").glob("[0-9]*/manifest.json"))[-1]
    return {name: row["sha256"] for name, row in json.loads(manifest.read_text())["body"]["leaves"].items()}


def steps(run: Path) -> list[int]:
    """The steps whose checkpoints are complete; none of them is damaged, which is checked."""
    found = training.Checkpoints(run / "checkpoints").steps()
    for folder in sorted((run / "checkpoints").glob("[0-9]*")) if found else []:
        if folder.name.isdigit():
            body = training.manifest.read_manifest(folder / "manifest.json", int(folder.name))
            training.manifest.verify_files(folder / "arrays", body["files"])
    return found
