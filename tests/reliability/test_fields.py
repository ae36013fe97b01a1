"""Every numeric field of every experiment refuses by name what it cannot use; found in the dataclasses themselves."""

import dataclasses
import os
import shutil
import subprocess
import sys

import pytest

from jaxseq.pipelines.config_fields import configure
from jaxseq.training import OptimizerConfig, TrainConfig, check_numbers
from jaxseq.training.settings import ANY_NUMBER
from tests.reliability.fields import EXPERIMENTS, READS, ROOT, accepted, bases, cases, legal, numbers, refusal


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_number_that_a_field_cannot_use_is_refused_by_its_name(experiment):
    configs, wrong = dict(bases(experiment)), []
    for case in cases(experiment):
        said = refusal(case, configs[case.base])
        if said is None and not legal(case):
            wrong.append(f"{case} is accepted")
        elif said is not None and (case.path[-1] not in said or "\n" in said or len(said) > 500):
            wrong.append(f"{case}: {said[:300]}")
    assert not wrong, "\n".join(wrong)


def test_a_new_field_is_covered_by_being_there():
    @dataclasses.dataclass(frozen=True)
    class Inner:
        rates: tuple[float, float] = (0.1, 0.2)

    @dataclasses.dataclass(frozen=True)
    class Config:
        inner: Inner = Inner()
        size: int | None = None
        table: dict[str, float] = dataclasses.field(default_factory=dict)
        free: float = dataclasses.field(default=float("inf"), metadata={ANY_NUMBER: True})

    found = [(".".join(path), index) for path, index, _ in numbers(Config())]
    assert found == [("inner.rates", 0), ("inner.rates", 1), ("size", None), ("free", None)]
    check_numbers(Config())
    for wrong, said in (
        (Config(inner=Inner((0.1, float("nan")))), "^inner.rates must be finite, not nan$"),
        (Config(size=2**31), f"^size must be from -2147483647 to 2147483647, not {2**31}$"),
        (Config(size=10**5000), "^size must be .* an integer of 16610 bits$"),
        (Config(table={"a": 1e300}), r"^table.a must be from -3.4\S+ to 3.4\S+, not 1e\+300$"),
    ):
        with pytest.raises(ValueError, match=said):
            check_numbers(wrong)


def test_numbers_in_texts_are_refused_before_a_config_is_used():
    @dataclasses.dataclass(frozen=True)
    class Config:
        seed: int = 0
        rate: float = 1.0
        train: TrainConfig = TrainConfig()
        optimizer: OptimizerConfig = OptimizerConfig()

    assert configure(Config, {"seed": str(2**32 - 1)}).seed == 2**32 - 1
    for field, value in {
        "seed": 2**32,
        "rate": "nan",
        "train.steps": 10**30,
        "b2": "inf",
        "warmup_steps": 2**63,
    }.items():
        with pytest.raises(ValueError, match=rf"{field}.*must be"):
            configure(Config, {field: str(value)})
    with pytest.raises(
        ValueError, match=r"^seed=-1: seed must be at least 0, not -1$|^seed must be at least 0, not -1$"
    ):
        configure(Config, {"seed": "-1"})


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_number_that_is_accepted_gives_results_or_one_line(tmp_path, experiment):
    """A process for each case: it ends with code 0, or with code 1 and one line, and never hangs."""
    chosen, wrong = accepted(experiment), []
    environment = os.environ | {"JAXSEQ_COMPILATION_CACHE": str(tmp_path / "compiled"), "PYTHONPATH": str(ROOT)}
    if chosen and experiment in READS:
        read = READS[experiment]
        command = [f"experiments/{read}.py", "--smoke", "--run", str(tmp_path / read / "base")]
        subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=True, timeout=600)
        if experiment in ("caption", "detect"):
            image = pytest.importorskip("PIL.Image", reason="pillow is not installed (extra `images`)")
            image.new("RGB", (32, 32), (90, 120, 30)).save(tmp_path / "image.png")
    for index, case in enumerate(chosen):
        command = [sys.executable, "-m", "tests.reliability.fields", experiment, str(index), str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
        lines = done.stderr.strip().splitlines()
        refused = done.returncode == 1 and lines and lines[-1].startswith("error: ")
        if (done.returncode and not refused) or "Traceback" in done.stderr:
            wrong.append(f"{case}: code {done.returncode}: {done.stderr[-1500:]}")
        print(case, done.returncode, *lines[-1:], flush=True)
        shutil.rmtree(tmp_path / experiment / "case", ignore_errors=True)
    assert not wrong, "\n".join(wrong)
