"""Run the test suite on a newer line of Python (3.12 or later), which resolves the lock to a newer jax.

    python tests/next_python.py [PATHS...]

Looks for an interpreter of another line than .venv's on PATH, then below ${PYENV_ROOT:-~/.pyenv}; takes one
only if it really runs (a pyenv shim may exist and fail). Makes .venv-next from requirements.lock, as the
Makefile makes .venv, and keeps it while lock, pyproject.toml and interpreter are the same. Where none is
found it says so and exits 0. It needs nothing but the standard library. Python 3.13 and 3.12 come first:
3.14 is newer than what is promised.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv-next"
ROOMS = ("ops", "cores", "testing", "layers", "encoders", "decoders", "models", "decoding", "training", "distribution")
"""The tests of these rooms run unless paths are given; ``python tests/next_python.py tests`` runs all."""

LINES = ((3, 13), (3, 12), (3, 14))


def line_of(interpreter: str | Path) -> tuple[int, int] | None:
    """(major, minor) of an interpreter that runs and can make a virtual environment, else None."""
    code = "import sys, venv, ensurepip; print(*sys.version_info[:2])"
    try:
        done = subprocess.run([interpreter, "-c", code], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.fullmatch(r"(\d+) (\d+)\s*", done.stdout)
    return (int(found[1]), int(found[2])) if done.returncode == 0 and found else None


def candidates(line: tuple[int, int]) -> list[str]:
    """Paths at which an interpreter of this line may be installed."""
    name = f"python{line[0]}.{line[1]}"
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    places = [folder / name for folder in folders]
    places += [folder / "bin" / "python" for folder in sorted(pyenv.glob(f"{line[0]}.{line[1]}*"))]
    return [str(place) for place in places if shutil.which(place)]


def find() -> tuple[str, tuple[int, int]] | None:
    """The first interpreter found whose line is in LINES and differs from that of .venv."""
    ordinary = line_of(ROOT / ".venv" / "bin" / "python") or sys.version_info[:2]
    for line in LINES:
        if line == ordinary:
            continue
        for place in candidates(line):
            if line_of(place) == line:
                return place, line
    return None


def make_ready(interpreter: str) -> Path:
    """.venv-next, made from the hashed lock unless it already was from the same."""
    digest = hashlib.sha256(os.path.realpath(interpreter).encode())
    for name in ("requirements.lock", "pyproject.toml"):
        digest.update((ROOT / name).read_bytes())
    ready, python = VENV / ".ready", VENV / "bin" / "python"
    if ready.exists() and ready.read_text() == digest.hexdigest() and line_of(python):
        return python
    print(f"making {VENV.name} from requirements.lock with {interpreter}", flush=True)
    pip = [python, "-m", "pip", "install", "--quiet"]
    subprocess.run([interpreter, "-m", "venv", "--clear", VENV], check=True, cwd=ROOT)
    subprocess.run([*pip, "--require-hashes", "-r", "requirements.lock"], check=True, cwd=ROOT)
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "-e", "."], check=True, cwd=ROOT)
    ready.write_text(digest.hexdigest())
    return python


def main(paths: list[str]) -> int:
    """Find, make ready, say what it is, test."""
    found = find()
    if found is None:
        lines = ", ".join(f"{major}.{minor}" for major, minor in LINES)
        print(f"SKIPPED: no other Python of {lines} that runs, on PATH or under pyenv; nothing was tested")
        return 0
    try:
        python = make_ready(found[0])
    except subprocess.CalledProcessError as error:
        print(f"FAILED: {VENV.name} could not be made with {found[0]}: {error}", file=sys.stderr)
        return 1
    said = "import platform, jax; print('Python', platform.python_version(), 'with jax', jax.__version__)"
    subprocess.run([python, "-c", said], check=True, cwd=ROOT)
    # This run tests the API of another jax; the main suite covers LLVM's optimisation.
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    chosen = paths or [f"tests/{room}" for room in ROOMS]
    test = [python, "-m", "pytest", "-n", "2", "-m", "not slow and not full", *chosen]
    return subprocess.run(test, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
