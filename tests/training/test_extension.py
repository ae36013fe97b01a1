"""A run with another number of steps: it goes on as a run of that number, or it says how the learning rate jumps."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from tiny_training import Config, Stream, digest, fresh_state, loss, train

from jaxseq.training import (
    CheckpointWarning,
    ConfigMismatchError,
    OptimizerConfig,
    Run,
    TrainConfig,
    enable_compilation_cache,
    fit,
    read_json_lines,
    read_run,
    to_json,
)
from jaxseq.training.extension import compare_steps, learning_rate
from jaxseq.training.settings import STEP_SCHEDULE

SCHEDULES = ("constant", "inverse_sqrt", "cosine", "linear")


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    enable_compilation_cache(tmp_path_factory.mktemp("xla"))
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


def config(steps, schedule="constant", **options):
    optimizer = dataclasses.replace(Config().optimizer, schedule=schedule, **options)
    return dataclasses.replace(
        Config(), optimizer=optimizer, train=dataclasses.replace(Config().train, steps=steps, checkpoint_every=4)
    )


def compared(before, after, reached, **options):
    """The comparison of a run of `before` steps with a config of `after`."""
    made = config(before, **options)
    return compare_steps(to_json(made), config(after, **options), reached)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("accumulate_steps", [1, 3])
def test_it_goes_on_exactly_where_no_learning_rate_depends_on_the_number_of_steps(schedule, accumulate_steps):
    warmup, options = 4, {"schedule": schedule, "warmup_steps": 4, "accumulate_steps": accumulate_steps}
    for reached in (1, 3, 4, 5, 6, 12, 14, 15, 20, 40):
        continuous, jumps, unknown = compared(40, 80, reached, **options)
        assert not unknown
        same = schedule in ("constant", "inverse_sqrt") or reached // accumulate_steps <= warmup
        assert (len(continuous), len(jumps)) == ((1, 0) if same else (0, 1)), reached
    assert ("goes on as in a run of 80 steps" in continuous[0]) if same else ("jumps from" in jumps[0])


def test_the_jump_is_the_difference_that_the_next_update_has():
    old, new = (learning_rate(config(steps, "linear").optimizer, steps, 20) for steps in (20, 40))
    assert old == 0 and new == pytest.approx(1e-2 * (40 - 20) / (40 - 3))
    (told,) = compared(20, 40, 20, schedule="linear").jumps
    assert told.startswith("train.steps: 20 -> 40: with the schedule linear, the learning rate jumps from 0 to 0.0054")
    rates = [learning_rate(config(20, "cosine").optimizer, 20, step) for step in range(4)]
    np.testing.assert_allclose(rates, [2.5e-3, 5e-3, 7.5e-3, 1e-2], rtol=1e-6)


def test_nothing_jumps_before_the_first_step_and_nothing_is_told_without_a_change():
    assert compared(20, 40, 0, schedule="cosine").jumps == []
    assert compared(20, 20, 10, schedule="cosine") == ([], [], [])
    assert compare_steps(None, config(20, "cosine"), 0) == ([], [], [])


def test_without_a_known_schedule_it_is_a_difference():
    @dataclasses.dataclass(frozen=True)
    class Own:
        train: TrainConfig = TrainConfig(steps=20)

    longer = Own(TrainConfig(steps=40))
    assert compare_steps(to_json(Own()), longer, 5) == ([], [], ["train.steps: 20 -> 40"])
    assert compared(20, 40, 5, learning_rate=None) == ([], [], ["train.steps: 20 -> 40"])


def test_another_field_that_depends_on_the_number_of_steps_is_named():
    @dataclasses.dataclass(frozen=True)
    class Scheduled:
        probability: float = dataclasses.field(default=0.5, metadata={STEP_SCHEDULE: True})
        train: TrainConfig = TrainConfig(steps=20)
        optimizer: OptimizerConfig = OptimizerConfig(schedule="constant")

    longer = Scheduled(train=TrainConfig(steps=40))
    (told,) = compare_steps(to_json(Scheduled()), longer, 5).jumps
    assert told == "train.steps: 20 -> 40: probability at a step depends on the number of steps"
    assert compare_steps(to_json(Scheduled()), dataclasses.replace(longer, probability=0.0), 5).jumps == []


@pytest.mark.parametrize("schedule", ["constant", pytest.param("inverse_sqrt", marks=pytest.mark.full)])
def test_a_run_that_is_extended_ends_bit_for_bit_as_a_longer_one(tmp_path, schedule, capsys):
    short, long = config(6, schedule), config(11, schedule)
    train(tmp_path / "a", short)
    extended = train(tmp_path / "a", long)
    assert "train.steps: 6 -> 11: the learning rate goes on as in a run of 11 steps" in capsys.readouterr().out
    assert digest(extended) == digest(train(tmp_path / "b", long))
    saved = read_run(tmp_path / "a")
    saved.verify_config(saved.config_as(Config))
    train(tmp_path / "a", long)
    assert "->" not in capsys.readouterr().out


def test_a_killed_extension_can_be_read_and_taken_back(tmp_path):
    train(tmp_path, config(6))
    Run.open(tmp_path, config(11), fingerprint=Stream().fingerprint).close()
    saved = read_run(tmp_path)
    assert saved.config_as(Config).train.steps == 11
    saved.verify_config(saved.config_as(Config))
    assert int(train(tmp_path, config(6)).step) == 6


def test_a_jump_is_refused_before_anything_is_written_and_warned_of_where_it_is_allowed(tmp_path):
    train(tmp_path, config(8, "cosine"))
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ConfigMismatchError, match=r"steps: 8 -> 16: .*cosine.* jumps from 0 to 0.00\d+ at step 8"):
        train(tmp_path, config(16, "cosine"))
    assert (tmp_path / "config.json").read_bytes() == before
    changed = config(16, "cosine")
    with (
        pytest.warns(CheckpointWarning, match="the learning rate jumps from 0 to"),
        Run.open(tmp_path, changed, fingerprint=Stream().fingerprint, allow_config_change=True) as run,
    ):
        optimizer, state = fresh_state(changed)
        state = fit(loss, state, optimizer, Stream(), run, changed.train)
    rates = {row["step"]: row["learning_rate"] for row in read_json_lines(tmp_path / "metrics.jsonl")}
    assert int(state.step) == 16
    assert rates[9] == pytest.approx(learning_rate(changed.optimizer, 16, 8), rel=1e-6)


def test_fewer_steps_than_were_made_are_refused(tmp_path):
    train(tmp_path, config(6))
    before = (tmp_path / "config.json").read_bytes()
    for allowed in (False, True):
        with pytest.raises(ConfigMismatchError, match=r"6 -> 5: the run is at step 6, past train.steps 5"):
            Run.open(tmp_path, config(5), fingerprint=Stream().fingerprint, allow_config_change=allowed)
    assert (tmp_path / "config.json").read_bytes() == before
    assert json.loads(before)["train"]["steps"] == 6
