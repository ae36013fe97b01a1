import contextlib
import dataclasses
import json
import os
import signal
import threading

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from tiny_training import Config, Stream, digest, fresh_state, loss, plain_loss, train

from jaxseq.training import (
    EXIT_INTERRUPTED,
    CheckpointError,
    Checkpoints,
    CheckpointWarning,
    ConfigMismatchError,
    Interrupted,
    NonfiniteError,
    Run,
    TrainConfig,
    checkpoints,
    enable_compilation_cache,
    fit,
    read_json_lines,
    to_json,
)
from jaxseq.training.state import init_ema

TIMES = ("train_seconds", "tokens_per_second", "steps_per_second")


def rows(folder, name="metrics.jsonl"):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read_json_lines(folder / name)]


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Programs are kept on disk for this module: each kind of step is compiled once."""
    enable_compilation_cache(tmp_path_factory.mktemp("xla"))
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """An uninterrupted run: its folder and its last state."""
    folder = tmp_path_factory.mktemp("straight")
    return folder, train(folder, Config())


@pytest.mark.parametrize("stop", [7, 10])
def test_a_resumed_run_ends_bit_for_bit_where_a_straight_one_does(tmp_path, straight, stop):
    train(tmp_path, Config(), stop_at=stop)
    resumed = train(tmp_path, Config())
    assert int(resumed.step) == 20
    assert digest(resumed) == digest(straight[1])
    assert digest(resumed.params) != digest(resumed.ema.mean)


@pytest.mark.parametrize("mode", [pytest.param(m, marks=pytest.mark.full) for m in ("zero", "recompute")])
def test_every_truncation_mode_resumes_bit_for_bit(tmp_path, mode):
    config = dataclasses.replace(Config(), train=TrainConfig(steps=9, truncation=mode, checkpoint_every=4))
    whole = train(tmp_path / "a", config)
    train(tmp_path / "b", config, stop_at=5)
    assert digest(train(tmp_path / "b", config)) == digest(whole)


def test_metrics_are_those_of_a_straight_run_and_none_is_doubled(tmp_path, straight):
    train(tmp_path, Config(), stop_at=10)
    # As a crash would leave it: lines past the checkpoint, and one that is torn.
    with open(tmp_path / "metrics.jsonl", "a") as stream:
        stream.write(json.dumps({"step": 12, "loss": 9.9}) + "\n" + '{"step": 15, "lo')
    train(tmp_path, Config())
    partial = [row for row in rows(tmp_path) if row["step"] != 10]  # stop_at makes a last line of its own
    straight_rows = [row for row in rows(straight[0]) if row["step"] != 12]
    assert [row["step"] for row in partial] == [3, 6, 9, 12, 15, 18, 20]
    assert [row for row in partial if row["step"] != 12] == straight_rows


def test_a_crash_between_log_lines_leaves_the_same_metrics(tmp_path, straight):
    class Crash(Exception):
        pass

    class Failing(Stream):
        def __call__(self, step):
            if step == 17:
                raise Crash
            return super().__call__(step)

    with pytest.raises(Crash):
        train(tmp_path, Config(), data=Failing())
    assert [row["step"] for row in rows(tmp_path)] == [3, 6, 9, 12, 15]
    state = train(tmp_path, Config())
    assert digest(state) == digest(straight[1])
    assert rows(tmp_path) == rows(straight[0])


def test_metrics_have_what_a_user_looks_for(straight):
    row = read_json_lines(straight[0] / "metrics.jsonl")[-1]
    expected = {
        "step", "tokens", "loss", "bits_per_token", "tokens_per_second", "learning_rate", "gradient_norm",
        "clipped_fraction", "nonfinite", "train_seconds", "accuracy",
    }  # fmt: skip
    assert expected <= row.keys()
    assert row["tokens"] == 20 * 20
    assert 0 <= row["clipped_fraction"] <= 1
    assert rows(straight[0])[-1]["loss"] < rows(straight[0])[0]["loss"]


def test_a_finished_run_is_left_as_it_is(straight):
    folder, state = straight
    before = {p: p.stat().st_mtime_ns for p in (folder / "checkpoints").rglob("*")}
    assert digest(train(folder, Config())) == digest(state)
    assert {p: p.stat().st_mtime_ns for p in (folder / "checkpoints").rglob("*")} == before


def test_training_time_adds_up_over_resumes(tmp_path):
    train(tmp_path, Config(), stop_at=10)
    first = read_json_lines(tmp_path / "metrics.jsonl")[-1]["train_seconds"]
    train(tmp_path, Config())
    assert read_json_lines(tmp_path / "metrics.jsonl")[-1]["train_seconds"] > first > 0


def test_the_start_tells_device_parameters_data_and_compile_time(tmp_path, capsys):
    train(tmp_path, Config(), stop_at=3)
    out = capsys.readouterr().out
    told = ["device: cpu", jax.__version__, "parameters: 183 in 4 arrays", "recurrent", "8x8"]
    for part in [*told, "20 tokens per step", "compiled 1 shape of batches in", "first step: ", "ETA"]:
        assert part in out
    assert json.loads((tmp_path / "parameters.json").read_text())[0]["name"] == "bias"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_finishes_the_step_saves_once_and_exits_with_the_code(tmp_path, straight, monkeypatch, number):
    class Signalling(Stream):
        def __call__(self, step):
            if step == 7:
                os.kill(os.getpid(), number)
            return super().__call__(step)

    written = []
    write = checkpoints.write_arrays
    monkeypatch.setattr(checkpoints, "write_arrays", lambda folder, x: (written.append(folder), write(folder, x)))
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    with pytest.raises(Interrupted) as stopped:
        train(tmp_path, Config(), data=Signalling())
    assert stopped.value.code == EXIT_INTERRUPTED == 75
    assert stopped.value.step == 8
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)] == handlers
    assert len(written) == 2  # step 5, and the one extra
    assert Checkpoints(tmp_path / "checkpoints").steps() == [5, 8]
    assert digest(train(tmp_path, Config())) == digest(straight[1])


@pytest.mark.parametrize("failures", [pytest.param(1, marks=pytest.mark.full), 2])
def test_a_last_save_that_fails_is_tried_again_and_then_an_error(tmp_path, monkeypatch, failures, straight):
    (tmp_path / "results.json").write_text("{}")  # of an earlier end
    (tmp_path / "config.json").write_text(json.dumps(to_json(Config())))
    write, failed = checkpoints.write_arrays, []

    def full(folder, leaves):
        if "00000020" in str(folder) and len(failed) < failures:
            failed.append(folder)
            raise OSError(28, "No space left on device")
        write(folder, leaves)

    monkeypatch.setattr(checkpoints, "write_arrays", full)
    with pytest.warns(CheckpointWarning, match="step 20 was not written"):
        if failures == 1:
            assert digest(train(tmp_path, Config())) == digest(straight[1])
        else:
            with pytest.raises(CheckpointError, match="the parameters of step 20 could not be saved"):
                train(tmp_path, Config())
    assert Checkpoints(tmp_path / "checkpoints").steps() == [[15, 20], [10, 15]][failures - 1]
    assert not (tmp_path / "results.json").exists()
    assert digest(train(tmp_path, Config())) == digest(straight[1])


@pytest.mark.full
def test_changed_metrics_are_told(tmp_path):
    train(tmp_path, Config(), stop_at=6)
    train(tmp_path, Config(), stop_at=7)
    file = tmp_path / "metrics.jsonl"
    file.write_text(file.read_text().replace("tokens", "jokens", 1))
    with pytest.warns(CheckpointWarning, match=r"metrics\.jsonl was changed: it differs from what the run wrote"):
        train(tmp_path, Config(), stop_at=8)
    train(tmp_path, Config(), stop_at=9)


@pytest.mark.full
def test_a_link_in_the_place_of_a_file_that_training_writes_is_not_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    for name in ("metrics.jsonl", ".lock"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(to_json(Config())))
        (folder / name).symlink_to(precious)
        with pytest.raises(OSError, match=r"\.lock") if name == ".lock" else contextlib.nullcontext():
            train(folder, Config(), stop_at=1)
        assert precious.read_text() == "precious"


def test_a_second_interrupt_stops_at_once(tmp_path):
    class Signalling(Stream):
        def __call__(self, step):
            if step == 2:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
            return super().__call__(step)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, Config(), data=Signalling())
    assert Checkpoints(tmp_path / "checkpoints").steps() == []


def test_outside_the_main_thread_it_trains_without_signals(tmp_path):
    done = []
    thread = threading.Thread(target=lambda: done.append(train(tmp_path, Config(), stop_at=2)))
    thread.start()
    thread.join()
    assert int(done[0].step) == 2


@pytest.mark.parametrize("poison", [(1,), (7,), (8,), (9,), (1, 7, 8, 9), (19,)])
def test_steps_that_are_not_finite_are_skipped_counted_and_dumped(tmp_path, poison):
    state = train(tmp_path, Config(), data=Stream(poison=poison))
    assert int(state.nonfinite) == len(poison)
    dumped = rows(tmp_path, "nonfinite.jsonl")
    assert [row["batch"] for row in dumped] == list(poison)
    assert all(row["seed"] == [0, 1] and row["data_fingerprint"] == Stream().fingerprint for row in dumped)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, state.ema, state.carry)))
    assert rows(tmp_path)[-1]["nonfinite"] == len(poison)


@pytest.mark.parametrize(
    ("most", "poison", "stops"),
    [(3, (7, 8, 9), True), (4, (7, 8, 9), False), pytest.param(1, (19,), True, marks=pytest.mark.full)],
)
def test_too_many_in_a_row_stop_it_with_finite_parameters_saved(tmp_path, most, poison, stops):
    train_config = dataclasses.replace(Config().train, max_consecutive_nonfinite=most)
    config = dataclasses.replace(Config(), train=train_config)
    if not stops:
        assert int(train(tmp_path, config, data=Stream(poison=poison)).step) == 20
        return
    with pytest.raises(NonfiniteError, match=f"{most} steps in a row.*nonfinite.jsonl"):
        train(tmp_path, config, data=Stream(poison=poison))
    _, like = fresh_state(config)
    like = like._replace(ema=init_ema(like.params))
    saved = Checkpoints(tmp_path / "checkpoints").restore_latest(like)
    assert saved.step > poison[-1]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(saved.state.params))
    good = train(tmp_path / "good", config, data=Stream(), stop_at=poison[0])
    if saved.step == poison[-1] + 1:
        assert digest(saved.state.params) == digest(good.params)


def test_skips_survive_a_resume_bit_for_bit(tmp_path):
    data = Stream(poison=(4, 5, 6))
    whole = train(tmp_path / "a", Config(), data=data)
    train(tmp_path / "b", Config(), data=data, stop_at=6)
    assert digest(train(tmp_path / "b", Config(), data=data)) == digest(whole)
    assert rows(tmp_path / "a", "nonfinite.jsonl") == rows(tmp_path / "b", "nonfinite.jsonl")


def test_a_failed_save_does_not_stop_training(tmp_path, straight, monkeypatch):
    write, calls = checkpoints.write_arrays, []

    def full(folder, leaves):
        calls.append(folder)
        if len(calls) in (2, 4):  # step 10, and the last, which is tried again
            raise OSError(28, "No space left on device")
        write(folder, leaves)

    monkeypatch.setattr(checkpoints, "write_arrays", full)
    with pytest.warns(CheckpointWarning) as caught:
        state = train(tmp_path, Config())
    assert [str(w.message)[:38] for w in caught] == [
        "the checkpoint of step 10 was not writ",
        "the checkpoint of step 20 was not writ",
    ]
    assert Checkpoints(tmp_path / "checkpoints").steps() == [15, 20]
    assert digest(state) == digest(straight[1])


def test_a_damaged_newest_checkpoint_is_passed_over_and_the_end_is_the_same(tmp_path, straight):
    train(tmp_path, Config(), stop_at=10)
    (tmp_path / "checkpoints" / "00000010" / "manifest.json").unlink()
    with pytest.warns(CheckpointWarning, match=r"step 10 .*using step 5"):
        state = train(tmp_path, Config())
    assert digest(state) == digest(straight[1])
    assert rows(tmp_path) == rows(straight[0])


def test_evaluation_is_given_averaged_parameters_and_is_logged(tmp_path):
    given = []

    def evaluate(params):
        given.append(params)
        return {"bits": float(len(given))}

    config = dataclasses.replace(Config(), train=dataclasses.replace(Config().train, eval_every=10))
    state = train(tmp_path, config, evaluate=evaluate)
    assert digest(given[-1]) == digest(state.ema.mean)
    lines = [(r["step"], r["evaluation/bits"]) for r in rows(tmp_path) if "evaluation/bits" in r]
    assert lines == [(10, 1.0), (20, 2.0)]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(given[0]))


def test_other_writers_are_told_too(tmp_path):
    class Recorder:
        def __init__(self):
            self.calls = []

        def write(self, step, metrics):
            self.calls.append(step)

        def rewind(self, step):
            self.calls.append(("rewind", step))

        def close(self):
            self.calls.append("close")

    recorder = Recorder()
    train(tmp_path, Config(), stop_at=6, writers=[recorder])
    assert recorder.calls == [("rewind", 0), 3, 6, "close"]


def test_the_callers_state_is_left_alone(tmp_path):
    config = Config()
    optimizer, state = fresh_state(config)
    before = digest(state)
    with Run.open(tmp_path, config, fingerprint="x") as run:
        short = dataclasses.replace(config.train, steps=2)
        fit(loss, state, optimizer, Stream(), run, short)
    assert digest(state) == before


def test_a_run_past_its_end_is_refused(tmp_path):
    train(tmp_path, Config(), stop_at=10)
    with pytest.raises(ConfigMismatchError, match=r"at step 10, past train steps 7"):
        train(tmp_path, Config(), stop_at=7)


def test_without_an_average_the_state_has_none(tmp_path):
    config = dataclasses.replace(Config(), train=TrainConfig(steps=3))
    state = train(tmp_path, config, loss=plain_loss)
    assert state.ema is None and digest(state.eval_params) == digest(state.params)


@pytest.mark.parametrize(("field", "value"), [("steps", 0), ("log_every", 0), ("ema_decay", 1.0), ("max_to_keep", 0)])
def test_a_senseless_config_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field}.*{value}"):
        TrainConfig(**{field: value})
