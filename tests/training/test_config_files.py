"""Configs in files: YAML, and the config.json of a run."""

import json
import sys

import pytest
import yaml

from experiments import captioning, language_model, translation
from jaxseq import training
from jaxseq.models.configs import RNNTranslator, TransformerTranslator
from jaxseq.pipelines import Reversal
from jaxseq.training.config_files import read_config, take_config


def read(tmp_path, text, kind=language_model.Config, name="c.yaml"):
    (tmp_path / name).write_text(text)
    return read_config(tmp_path / name, kind)


@pytest.mark.parametrize("kind", [language_model.Config, translation.Config, captioning.Config])
def test_the_config_json_of_a_run_gives_its_config(tmp_path, kind):
    config = kind()
    (tmp_path / "config.json").write_text(json.dumps(training.to_json(config)))
    assert read_config(tmp_path / "config.json", kind) == config
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(training.to_json(config)))
    assert read_config(tmp_path / "c.yaml", kind) == config


def test_fields_that_a_file_does_not_set_have_the_defaults_of_the_experiment(tmp_path):
    config = read(tmp_path, "core: gru,lstm\ntrain: {steps: 5}\noptimizer:\n  learning_rate: 1e-3\nseed: 3\n")
    default = language_model.Config()
    assert (config.model.core, config.model.features) == ("gru,lstm", default.model.features)
    assert (config.train.steps, config.train.truncation) == (5, default.train.truncation)
    assert (config.optimizer.learning_rate, config.optimizer.b2, config.seed) == (1e-3, default.optimizer.b2, 3)
    assert read(tmp_path, "{}") == default


def test_a_kind_may_be_named_as_a_class_or_as_on_the_command_line(tmp_path):
    for text in ("model: transformer", "model: {kind: transformer}", "model: {kind: TransformerTranslator}"):
        config = read(tmp_path, text, translation.Config)
        assert config.model == TransformerTranslator() and config.train.steps == TransformerTranslator.default_steps
    config = read(tmp_path, "task: reversal\nmodel: {kind: rnn, layers: 2}\nfeatures: 16", translation.Config)
    assert config.model == RNNTranslator(layers=2, features=16) and config.task == Reversal()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cores: lstm", "unknown cores .known: run,"),
        ("features: wide", "model.features must be of type int, not 'wide'"),
        ("features: 0", "features must be at least 1"),
        ("- lstm", "must hold fields and values"),
        ("lstm", "must hold fields and values"),
        ("seed: 1\nseed: 2", "seed is set twice"),
        ("core: gru\nmodel: {core: lstm}", "core is set twice"),
        ("train: {steps: [1}", "c.yaml: while parsing"),
        ("seed: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("train: 5", "train must be of type TrainConfig"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(tmp_path, text, told):
    with pytest.raises(ValueError, match=told) as caught:
        read(tmp_path, text)
    assert "c.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_other_files_and_kinds_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"the suffix is '.toml'"):
        read(tmp_path, "", name="c.toml")
    with pytest.raises(ValueError, match=r"kind 'transformed'; known: rnn, attention, transformer"):
        read(tmp_path, "model: transformed", translation.Config)
    assert take_config(["--a", "--config", "c.yaml", "--b"]) == (tmp_path.__class__("c.yaml"), ["--a", "--b"])
    assert take_config(["--config=c.yaml"])[1] == [] and take_config(["--", "--config", "x"])[0] is None
    for words in (["--config"], ["--config", "--run"], ["--config="]):
        with pytest.raises(ValueError, match="--config needs a file"):
            take_config(words)


def test_options_of_the_command_line_override_the_file(tmp_path, monkeypatch):
    (tmp_path / "c.yaml").write_text("core: gru\nfeatures: 16\ntrain: {steps: 7}")
    words = ["prog", "--features", "32", "--config", str(tmp_path / "c.yaml"), "--train.log-every", "2"]
    monkeypatch.setattr(sys, "argv", words)
    config = training.cli.parse_arguments(language_model.Config, "")
    assert (config.model.core, config.model.features, config.train.steps, config.train.log_every) == ("gru", 32, 7, 2)
    (tmp_path / "t.yaml").write_text("model: {kind: transformer, features: 16}\nbatch_size: 3")
    words = ["prog", "--config", str(tmp_path / "t.yaml"), "model:transformer", "--layers", "3"]
    monkeypatch.setattr(sys, "argv", words)
    config = training.cli.parse_arguments(translation.Config, "")
    assert config.model == TransformerTranslator(features=16, layers=3) and config.batch_size == 3
