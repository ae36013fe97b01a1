"""The best checkpoint and early stopping: the choices of a plain loop, also when the run is interrupted."""

import dataclasses
import json
import math

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.compilation_cache import compilation_cache
from tiny_training import Config, Stream, digest, initial_params, train

from jaxseq.training import (
    BestTracker,
    CheckpointError,
    CheckpointMismatchError,
    Checkpoints,
    CheckpointWarning,
    TrainConfig,
    checkpoints,
    enable_compilation_cache,
    read_run,
)

STEPS, EVERY = 20, 2


VALUES = {2: 4.0, 4: 3.0, 6: 3.5, 8: 1.0, 10: 2.0, 12: 1.5, 14: 1.0, 16: 3.0, 18: 1.25, 20: 2.0}
BEST = 8
STEP_OF = {}
"""The step of parameters by their digest: an evaluation is a function of the parameters."""


def evaluate(params):
    return {"score": VALUES[STEP_OF[digest(params)]]}


def config(**options):
    options = {"eval_every": EVERY, "best_metric": "score"} | options
    return dataclasses.replace(Config(), train=dataclasses.replace(Config().train, **options))


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    enable_compilation_cache(tmp_path_factory.mktemp("xla"))
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """An uninterrupted run: its folder and its last state."""
    folder = tmp_path_factory.mktemp("straight")

    def record(params):
        STEP_OF[digest(params)] = EVERY * (len(STEP_OF) + 1)
        return evaluate(params)

    return folder, train(folder, config(), evaluate=record)


def plain_best(values, sign=1):
    """The step of the best value, the first of equal ones, by a plain loop."""
    best = None
    for step, value in values.items():
        if math.isfinite(value) and (best is None or sign * value < sign * values[best]):
            best = step
    return best


def stored_best(folder):
    """What the newest checkpoint says of the best, and the steps on disk."""
    store = Checkpoints(folder / "checkpoints")
    return store.best_step(), store.steps()


def test_the_best_of_a_plain_loop_is_kept_with_its_parameters(straight):
    folder, state = straight
    assert plain_best(VALUES) == BEST and stored_best(folder) == (BEST, [BEST, 15, 20])
    saved = read_run(folder)
    restored = saved.restore_parameters(initial_params(), step="best")
    assert restored.step == STEP_OF[digest(restored.state)] == BEST
    assert restored.meta["best"]["value"] == VALUES[BEST]
    assert digest(saved.restore_parameters(initial_params()).state) == digest(state.eval_params)
    assert digest(saved.restore_parameters(initial_params(), averaged=False).state) == digest(state.params)


class Crash(Exception):
    pass


class Failing(Stream):
    def __init__(self, at):
        super().__init__()
        self.at = at

    def __call__(self, step):
        if step == self.at:
            raise Crash
        return super().__call__(step)


@pytest.mark.parametrize(
    "at", [pytest.param(at, marks=() if at in (9, 16) else pytest.mark.full) for at in range(1, STEPS)]
)
def test_interrupted_at_any_step_it_keeps_the_same_best(tmp_path, straight, at):
    with pytest.raises(Crash):
        train(tmp_path, config(), data=Failing(at), evaluate=evaluate)
    assert digest(train(tmp_path, config(), evaluate=evaluate)) == digest(straight[1])
    assert stored_best(tmp_path) == stored_best(straight[0])
    stores = [read_run(folder).restore_parameters(initial_params(), step="best") for folder in (tmp_path, straight[0])]
    assert digest(stores[0].state) == digest(stores[1].state)
    assert stores[0].meta["best"] == stores[1].meta["best"]


def test_if_the_newest_is_damaged_the_best_of_the_one_before_is_there(tmp_path, straight):
    train(tmp_path, config(), evaluate=evaluate, stop_at=16)
    newest = max(Checkpoints(tmp_path / "checkpoints").steps())
    (tmp_path / "checkpoints" / f"{newest:08d}" / "manifest.json").unlink()
    with pytest.warns(CheckpointWarning, match=f"step {newest} "):
        assert digest(train(tmp_path, config(), evaluate=evaluate)) == digest(straight[1])
    assert stored_best(tmp_path) == stored_best(straight[0])


def test_a_best_checkpoint_that_is_missing_is_told_and_replaced(tmp_path, straight):
    train(tmp_path, config(), evaluate=evaluate, stop_at=19)
    (tmp_path / "checkpoints" / f"{BEST:08d}").rename(tmp_path / "elsewhere")
    with pytest.warns(CheckpointWarning, match=f"best checkpoint, of step {BEST}, is missing"):
        train(tmp_path, config(), evaluate=evaluate)
    assert stored_best(tmp_path)[0] == 20


def test_a_best_checkpoint_that_was_not_written_is_not_the_best(tmp_path, straight, monkeypatch):
    write = checkpoints.write_arrays

    def full(folder, leaves):
        if f"{BEST:08d}" in str(folder):
            raise OSError(28, "No space left on device")
        write(folder, leaves)

    monkeypatch.setattr(checkpoints, "write_arrays", full)
    with pytest.warns(CheckpointWarning, match=f"step {BEST} was not written"):
        train(tmp_path, config(), evaluate=evaluate)
    assert stored_best(tmp_path) == (14, [14, 15, 20])


def plain_stop(values, patience, margin=0.0):
    """The step at which a plain loop without patience stops."""
    reference, stale = None, 0
    for step, value in values.items():
        stale += 1
        if reference is None or value < reference - margin:
            reference, stale = value, 0
        if stale >= patience:
            return step
    return STEPS


@pytest.mark.parametrize("patience", [2, pytest.param(3, marks=pytest.mark.full)])
def test_patience_ends_training_where_a_plain_loop_ends_it(tmp_path, straight, patience, capsys):
    end = plain_stop(VALUES, patience)
    early = config(patience=patience)
    state = train(tmp_path, early, evaluate=evaluate)
    assert int(state.step) == end < STEPS
    assert f"stopped early at step {end} of {STEPS}: score has not improved in the last {patience}" in (
        capsys.readouterr().out
    )
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["step"] == end
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").rglob("*")}
    assert digest(train(tmp_path, early, evaluate=lambda params: 1 / 0)) == digest(state)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").rglob("*")} == before
    more = train(tmp_path, config(), evaluate=evaluate)
    assert digest(more) == digest(straight[1]) and stored_best(tmp_path)[0] == stored_best(straight[0])[0]


@pytest.mark.full
def test_patience_counts_over_a_resume(tmp_path, straight):
    end, early = plain_stop(VALUES, 2), config(patience=2)
    with pytest.raises(Crash):
        train(tmp_path, early, data=Failing(end - 1), evaluate=evaluate)
    assert int(train(tmp_path, early, evaluate=evaluate).step) == end


def test_the_best_parameters_are_returned_on_request(straight):
    state = train(straight[0], config(final_parameters="best"), evaluate=evaluate)
    assert int(state.step) == STEP_OF[digest(state.eval_params)] == BEST


def test_a_metric_that_is_never_finite_has_no_best(tmp_path):
    short = config(final_parameters="best", eval_every=1)
    with pytest.raises(CheckpointError, match="no evaluation gave a finite score"):
        train(tmp_path, short, evaluate=lambda params: {"score": math.nan}, stop_at=2)


def test_a_metric_that_the_evaluation_lacks_is_named(tmp_path):
    with pytest.raises(ValueError, match="best_metric 'score' is no value of the evaluation; it has loss, bits"):
        train(tmp_path, config(eval_every=1), evaluate=lambda params: {"loss": 1.0, "bits": 2.0})
    with pytest.raises(ValueError, match="best_metric=score needs an evaluation"):
        train(tmp_path, config(eval_every=1))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"best_metric": "loss"}, "best_metric=loss needs train eval_every"),
        ({"patience": 2}, "patience=2 needs train best_metric"),
        ({"min_improvement": 0.5}, "min_improvement=0.5 needs train best_metric"),
        ({"final_parameters": "best"}, "final_parameters=best needs train best_metric"),
        ({"best_metric": "loss", "eval_every": 1, "patience": 0}, "patience must be at least 1, not 0"),
        ({"best_metric": "loss", "eval_every": 1, "min_improvement": -1.0}, "min_improvement must be at least 0"),
    ],
)
def test_options_without_effect_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        TrainConfig(**options)


values_of_a_run = st.lists(st.sampled_from([0.0, -1.5, 0.25, 0.3, 2.0, math.nan, math.inf, -math.inf]), max_size=12)


@settings(max_examples=50, deadline=None)
@given(values_of_a_run, st.sampled_from(["min", "max"]), st.integers(0, 11))
def test_a_tracker_that_is_stored_makes_the_choices_of_a_plain_loop(values, mode, stored):
    sign, tracker = (1 if mode == "min" else -1), BestTracker("x", mode, 0.0)
    for step, value in enumerate(values):
        if step == stored:
            tracker = BestTracker("x", mode, 0.0, json.loads(json.dumps(tracker.content)))
        earlier = plain_best(dict(enumerate(values[:step])), sign)
        best = plain_best(dict(enumerate(values[: step + 1])), sign)
        assert tracker.update(step, {"x": value}) is (best != earlier)
        assert tracker.step == best and tracker.stale == (step - best if best is not None else step + 1)


def test_small_improvements_count_once_they_add_up():
    tracker, stale = BestTracker("x", "min", 0.1), []
    for step, value in enumerate([1.0, 0.95, 0.92, 0.89, 0.85]):
        assert tracker.update(step, {"x": value})
        stale.append(tracker.stale)
    assert stale == [0, 1, 2, 0, 1] and tracker.value == 0.85


def test_a_state_of_another_metric_or_mode_is_not_used():
    tracker = BestTracker("x", "min", 0.0)
    tracker.update(3, {"x": 1.0})
    assert BestTracker("x", "min", 0.5, tracker.content).step == 3
    assert BestTracker("y", "min", 0.0, tracker.content).step is None
    assert BestTracker("x", "max", 0.0, tracker.content).step is None


@pytest.mark.parametrize("change", [{"step": "3"}, {"value": [1.0]}, {"stale": None}, {"reference": True}, {"more": 1}])
def test_a_state_that_is_none_is_refused(change):
    content = BestTracker("x", "min", 0.0).content | change
    with pytest.raises(CheckpointMismatchError, match="the best evaluation is stored as"):
        BestTracker("x", "min", 0.0, content)


def test_what_failed_to_be_written_gives_way_to_the_best_before():
    tracker = BestTracker("x", "max", 0.0)
    for step, value in ((1, 1.0), (2, 2.0), (3, 3.0)):
        tracker.update(step, {"x": value})
    tracker.forget(2)
    assert tracker.step == 3
    tracker.forget(3)
    assert (tracker.step, tracker.value) == (1, 1.0)
    tracker.forget(1)
    assert (tracker.step, tracker.value) == (None, None)
