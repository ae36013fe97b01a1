"""The installed package: light to import, typed, and with the experiments, which run from a wheel alone."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {path.name for path in (ROOT / "experiments").glob("*.py")}


def run(*command: str, cwd: Path, **environment: str) -> str:
    """The output of Python with these arguments, which must succeed."""
    variables = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this checkout."""
    pytest.importorskip("hatchling", reason="hatchling is not installed (extra `dev`)")
    folder = tmp_path_factory.mktemp("wheel")
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    run("-m", "pip", "wheel", *options, "-w", str(folder), str(ROOT), cwd=folder)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder with what the wheel installs, and nothing of the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_importing_the_package_imports_no_jax_and_its_rooms_come_on_first_use():
    code = (
        "import sys, jaxseq; assert not {'jax', 'numpy', 'flax'} & set(sys.modules); print(jaxseq.cores.LSTM.__name__)"
    )
    assert run("-c", code, cwd=ROOT, PYTHONPATH=str(ROOT)) == "LSTM\n"


def test_every_room_is_an_attribute_and_an_unknown_one_is_named():
    import jaxseq

    rooms = {path.stem for path in (ROOT / "jaxseq").iterdir() if not path.name.startswith(("_", ".", "py.typed"))}
    assert set(jaxseq.__all__) == rooms | {"load"} and rooms < set(dir(jaxseq))
    with pytest.raises(AttributeError, match=r"no attribute 'core'.*cores"):
        jaxseq.core  # noqa: B018


def test_the_wheel_holds_the_experiments_the_templates_and_the_marker_of_types(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"jaxseq/experiments/{name}" for name in SCRIPTS} <= names
    shipped = {str(path.relative_to(ROOT)) for path in (ROOT / "jaxseq").rglob("*") if path.is_file()}
    assert {name for name in shipped if "__pycache__" not in name} <= names
    assert "jaxseq/py.typed" in names and not any(name.startswith(("tests", "benchmarks")) for name in names)


def test_the_installed_package_lists_its_commands_and_finds_its_scripts(installed, tmp_path):
    shown = run("-m", "jaxseq", "--help", cwd=tmp_path, PYTHONPATH=str(installed))
    assert all(
        name in shown for name in ("train language-model", "train translation", "generate", "translate", "ablation")
    )
    assert Path(run("-m", "jaxseq", "path", cwd=tmp_path, PYTHONPATH=str(installed)).strip()).is_relative_to(installed)
    help_text = run("-m", "jaxseq", "train", "language_model", "--help", cwd=tmp_path, PYTHONPATH=str(installed))
    assert "--core" in help_text and "--train.steps" in help_text
    unknown = subprocess.run(
        [sys.executable, "-m", "jaxseq", "train", "gpt"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert unknown.returncode == 1 and unknown.stderr.startswith(
        "error: unknown command 'train gpt'; known: train lang"
    )


@pytest.mark.full
def test_an_installed_experiment_trains_and_its_run_generates(installed, tmp_path):
    train = ("train", "language-model", "--core", "elman", "--smoke", "--run", "run")
    assert "more text: python -m jaxseq generate --run run" in run(
        "-m", "jaxseq", *train, cwd=tmp_path, PYTHONPATH=str(installed)
    )
    generate = ("generate", "--run", "run", "--max-length", "8")
    assert "elman at step 20" in run("-m", "jaxseq", *generate, cwd=tmp_path, PYTHONPATH=str(installed))
