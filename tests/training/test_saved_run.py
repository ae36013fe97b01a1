"""A run folder, read while nothing else is known of it than its path."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from jaxseq.training import Checkpoints, Run, RunFolderError, create_state, read_run


@dataclasses.dataclass(frozen=True)
class Config:
    width: int = 3


@dataclasses.dataclass(frozen=True)
class Newer(Config):
    depth: int = 2


@dataclasses.dataclass(frozen=True)
class Other:
    height: int = 3


def params(value):
    return {"kernel": jnp.full((3, 2), value)}


@pytest.fixture
def run(tmp_path):
    with Run.open(tmp_path / "run", Config(width=5), fingerprint="abc") as run:
        yield run


def save(run, step):
    state = create_state(params(float(step)), optax.sgd(0.1), key=jax.random.key(0), ema=True)
    store = Checkpoints(run.checkpoints)
    store.save(step, state._replace(ema=state.ema._replace(mean=params(step + 0.5))))
    store.close()


def test_config_files_and_parameters_are_read_while_the_run_is_locked(run):
    save(run, 3)
    run.write("vocabulary.json", ["a", "b"])
    before = sorted(run.path.rglob("*"))
    saved = read_run(str(run.path))
    assert saved.path == run.path and saved.config == {"width": 5}
    assert saved.config_as(Config) == Config(5) and saved.config_as(Newer) == Newer(5, 2)
    assert saved.read("vocabulary.json") == ["a", "b"]
    restored = saved.restore_parameters(jax.eval_shape(lambda: params(0.0)))
    assert restored.step == 3
    chex.assert_trees_all_equal(restored.state, params(3.5))
    assert sorted(run.path.rglob("*")) == before


def refused(call):
    with pytest.raises(RunFolderError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_read_is_one_line_that_says_why(run, tmp_path):
    file, empty = tmp_path / "file", tmp_path / "empty"
    file.touch()
    empty.mkdir()
    assert "nowhere is not a run folder: it does not exist" in refused(lambda: read_run(tmp_path / "nowhere"))
    assert "file is a file, not a run folder" in refused(lambda: read_run(file))
    assert "empty is not a run folder: it has no config.json" in refused(lambda: read_run(empty))
    saved = read_run(run.path)
    assert "run has no checkpoint yet" in refused(lambda: saved.restore_parameters(params(0.0)))
    assert "run has no results.json" in refused(lambda: saved.read("results.json"))
    said = refused(lambda: saved.config_as(Other))
    assert "another experiment: config does not fit the fields of Other: unknown width (known: height)" in said
    (run.path / "config.json").write_text("{")
    assert "config.json is not valid JSON" in refused(lambda: read_run(run.path))
