"""Parameters are used with the config, model and data that they were saved with."""

import dataclasses
import json

import jax.numpy as jnp
import pytest

from jaxseq.training import CheckpointMismatchError, Checkpoints, CheckpointWarning, Provenance, resumable_field
from jaxseq.training.provenance import provenance_differences, provenance_to_json

STATE = {"x": jnp.ones(3)}


@dataclasses.dataclass(frozen=True)
class Model:
    num_heads: int = 2
    core: str = "lstm"


@dataclasses.dataclass(frozen=True)
class Deeper(Model):
    layers: int = 1


@dataclasses.dataclass(frozen=True)
class Config:
    length: int = 8
    model: Model = Model()
    log_every: int = resumable_field(10)


PARTS = {"model": Model(), "vocabulary": '{"characters": "ab"}', "sizes": (3, 4)}
KNOWN = Provenance(Config(), PARTS, "abc")

CHANGES = [
    (KNOWN._replace(config=Config(length=9)), "config length: 8 -> 9"),
    (KNOWN._replace(config=Config(model=Model(3))), "config model.num_heads: 2 -> 3"),
    (KNOWN._replace(model=PARTS | {"model": Model(4)}), "model.num_heads: 2 -> 4"),
    (KNOWN._replace(model=PARTS | {"model": Deeper()}), "model: Model -> Deeper"),
    (KNOWN._replace(model=PARTS | {"vocabulary": '{"characters": "ba"}'}), "vocabulary: SHA-256 "),
    (KNOWN._replace(model=PARTS | {"code": "c0de"}), "code: (absent) -> SHA-256 "),
    (KNOWN._replace(model={"model": Model(), "sizes": (3, 4)}), "-> (absent)"),
    (KNOWN._replace(data="abd"), "data fingerprint: abc -> abd"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    store = Checkpoints(tmp_path_factory.mktemp("run"), provenance=KNOWN)
    store.save(5, STATE)
    store.close()
    return store.folder


@pytest.mark.parametrize(("now", "said"), CHANGES, ids=[said for _, said in CHANGES])
def test_another_config_model_or_data_is_refused_by_name(folder, now, said):
    for restore in ("restore_latest", "restore_parameters"):
        with pytest.raises(CheckpointMismatchError, match="belongs to another config, model or data") as error:
            getattr(Checkpoints(folder, provenance=now), restore)(STATE)
        assert said in str(error.value) and str(error.value).count("->") == 1
    with pytest.warns(CheckpointWarning, match="belongs to another config"):
        assert Checkpoints(folder, provenance=now, accept_changes=True).restore_latest(STATE).step == 5


def test_the_same_is_loaded_and_what_is_not_given_is_not_compared(folder):
    same = Provenance(Config(log_every=3), dict(reversed(PARTS.items())), "abc")
    for now in (same, Provenance(), Provenance(data="abc"), Provenance(model=PARTS)):
        assert Checkpoints(folder, provenance=now).restore_latest(STATE).step == 5
    assert Checkpoints(folder).newest_provenance()["data"] == "abc"
    assert Checkpoints(folder / "none").newest_provenance() == {}


def test_a_newer_field_has_its_default():
    stored = json.loads(json.dumps(provenance_to_json(KNOWN)))
    del stored["model"]["model"]["core"], stored["config"]["length"]
    assert provenance_differences(stored, KNOWN) == []
    other = KNOWN._replace(model=PARTS | {"model": Model(core="gru")})
    assert provenance_differences(stored, other) == ["model.core: 'lstm' -> 'gru'"]


def test_a_checkpoint_that_does_not_tell_is_loaded_with_a_warning(tmp_path):
    store = Checkpoints(tmp_path)
    store.save(1, STATE)
    store.close()
    assert store.restore_latest(STATE).step == 1
    with pytest.warns(CheckpointWarning, match="does not tell which config, model and data"):
        assert Checkpoints(tmp_path, provenance=KNOWN).restore_latest(STATE).step == 1
