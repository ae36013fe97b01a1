"""The language model experiment: from a command to a resumed run, and what it says to wrong input."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.language_model import Config, main, make_loss
from jaxseq import data, training
from jaxseq.cores import CORES
from jaxseq.training import Checkpoints, ConfigMismatchError, TrainConfig
from tests.experiments.small_runs import small_language_model as small

ROOT = Path(__file__).resolve().parents[2]
FULL = pytest.mark.full


def test_a_run_leaves_a_whole_run_folder(language_model_run):
    config, results = language_model_run
    files = {str(f.relative_to(config.run)) for f in config.run.rglob("*") if f.is_file()}
    expected = {"config.json", "environment.json", "metrics.jsonl", "results.json", "report.html", "vocabulary.json"}
    assert expected <= files
    assert json.loads((config.run / "results.json").read_text()) == pytest.approx(results)
    assert 0 < results["bits_per_character"] < 8 and results["steps"] == 6


@FULL
def test_a_smoke_run_reads_the_embedded_corpus(tmp_path):
    results = main(Config(run=tmp_path / "run", smoke=True))
    assert 0 < results["lzma_bits_per_character"] < results["bits_per_character"] < 8
    assert results["held_out_overlap"] < 0.05


@pytest.mark.full
@pytest.mark.parametrize("name", ["lstm", "lru", "mamba2", "attention"])
def test_cores_of_every_family_train_by_name(name, tmp_path, text_file):
    results = main(small(tmp_path / "run", text_file, core=name))
    assert np.isfinite(results["bits_per_character"])
    expected = {"lstm": "recurrence=fused", "lru": "linear_recurrence=", "mamba2": ", linear_attention="}
    assert expected.get(name, "attention=") in results["implementations"]


@pytest.mark.parametrize("name", CORES)
def test_the_loss_of_every_core_of_the_table_has_a_gradient(name, tmp_path, text_file):
    config = small(tmp_path / "run", text_file, core=name)
    model = config.model.build(11, attention_lookback=config.length - 1)
    carry = model.initial_carry((config.batch_size,))
    tokens = np.zeros((config.batch_size, config.length), np.int32)
    batch = data.Batch(tokens, tokens, np.ones_like(tokens))

    def gradients(key, batch):
        params = model.init(key, carry, batch.tokens)["params"]
        return params, jax.grad(lambda p: make_loss(model)(p, carry, batch, key)[0])(params)

    params, found = jax.eval_shape(gradients, jax.random.key(0), batch)
    assert jax.tree.map(lambda p: p.shape, found) == jax.tree.map(lambda p: p.shape, params)


@pytest.mark.full
@pytest.mark.parametrize(
    "changes",
    [
        {"batches": "packed", "train": TrainConfig(steps=3), "tokens": "bytes", "precision": "bfloat16"},
        {"batches": "crops", "train": TrainConfig(steps=3, ema_decay=0.9), "tied": True, "dropout": 0.1, "layers": 2},
        {"train": TrainConfig(steps=5, truncation="recompute"), "block": "post", "feed_forward": 16},
        {"core": "attention", "context": 7, "core_options": ("num_heads=2", "num_kv_heads=1", "positions=alibi")},
    ],
    ids=["packed-bytes-bf16", "crops-ema-tied-dropout", "recompute-post-norm", "attention-context-options"],
)
def test_the_options_work_together(changes, tmp_path, text_file):
    results = main(small(tmp_path / "run", text_file, **changes))
    assert np.isfinite(results["bits_per_character"])


@FULL
def test_bpe_is_measured_per_character(tmp_path, text_file):
    pytest.importorskip("tokenizers", reason="the text extra is not installed")
    results = main(small(tmp_path / "run", text_file, tokens="bpe", vocabulary_size=300))
    assert 0 < results["bits_per_character"] < 12


@FULL
def test_a_run_that_was_stopped_ends_bitwise_where_it_would_have(tmp_path, text_file):
    whole = small(tmp_path / "whole", text_file, dropout=0.1)
    main(whole)
    halves = dataclasses.replace(whole, run=tmp_path / "halves")
    stop_after(halves, 3)
    main(halves)
    like = None
    trees = []
    for config in (whole, halves):
        like = like or fresh_state(config)
        trees.append(Checkpoints(config.run / "checkpoints").restore_latest(like))
    assert [t.step for t in trees] == [6, 6]
    for one, other in zip(*(jax.tree.leaves(t.state) for t in trees), strict=True):
        if jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        np.testing.assert_array_equal(one, other)


def stop_after(config: Config, steps: int) -> None:
    """Ctrl-C in the middle of a run."""
    import signal

    original = data.ContiguousStreams.__call__

    def interrupting(self, step):
        if step == steps:
            signal.raise_signal(signal.SIGINT)
        return original(self, step)

    data.ContiguousStreams.__call__ = interrupting
    try:
        with pytest.raises(training.Interrupted) as stopped:
            main(config)
    finally:
        data.ContiguousStreams.__call__ = original
    assert stopped.value.code == training.EXIT_INTERRUPTED


def fresh_state(config: Config):
    """A state of the shapes that the run's checkpoints have."""
    vocabulary = data.fit_vocabulary(config.tokens, data.text_corpus(config.text).train)
    model = config.model.build(vocabulary.size, attention_lookback=config.length - 1)
    carry = model.initial_carry((config.batch_size,), config.context)
    key, init_key = jax.random.split(jax.random.key(config.seed))
    tokens = jax.numpy.zeros((config.batch_size, config.length), "int32")
    params = model.init(init_key, carry, tokens)["params"]
    optimizer = training.make_optimizer(config.optimizer, config.train.steps)
    return training.create_state(params, optimizer, carry=carry, key=key, ema=True)


def test_a_core_file_that_does_not_import_is_named(tmp_path, text_file):
    (tmp_path / "broken.py").write_text("def core(:")
    with pytest.raises(ValueError, match=r"broken\.py.*SyntaxError"):
        main(small(tmp_path / "run", text_file, core=f"{tmp_path}/broken.py:Core"))


BROKEN = '''
import jax.numpy as jnp
from jaxseq.cores import StateCore
from jaxseq.ops.recurrence.cells import Hidden


class Sums(StateCore):
    """Running sums of its input, which a split forgets."""

    def initial_state(self, batch_shape):
        return Hidden(jnp.zeros((*batch_shape, self.features), jnp.float32))

    def mix(self, state, xs, segment_ids):
        return state, jnp.cumsum(xs, -2)
'''


def test_a_core_that_breaks_a_law_is_refused_before_training_by_the_laws_name(tmp_path, text_file):
    (tmp_path / "mine.py").write_text(BROKEN)
    with pytest.raises(ValueError, match=r"mine\.py:Sums' breaks the contract of cores: .*splitting"):
        main(small(tmp_path / "run", text_file, core=f"{tmp_path}/mine.py:Sums"))
    assert not (tmp_path / "run").exists()


def test_other_held_out_text_is_other_data(language_model_run, tmp_path):
    config, _ = language_model_run
    shutil.copytree(config.run, tmp_path / "run")
    text = config.text.read_text(encoding="utf-8")
    (tmp_path / "book.txt").write_text(text[:-40] + text[-40:][::-1], encoding="utf-8")
    with pytest.raises(ConfigMismatchError, match="fingerprint"):
        main(dataclasses.replace(config, run=tmp_path / "run", text=tmp_path / "book.txt"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"core": "transformer"}, ["transformer", "elman", "gru", "lstm", "mingru", "attention"]),
        ({"core": "nowhere.py:Core"}, ["nowhere.py"]),
        ({"core": "attention", "core_options": ("num_heads=3",)}, ["features=8", "num_heads=3"]),
        ({"core_options": ("num_heads=3",)}, ["features=8", "num_heads=3"]),
        ({"core_options": ("heads=2",)}, ["heads=2", "num_heads"]),
        ({"core_options": ("features=16",)}, ["features=16", "num_heads"]),
        ({"core": "lstm", "core_options": ("peepholes=maybe",)}, ["peepholes=maybe", "bool"]),
        ({"layers": 0}, ["layers", "0"]),
        ({"dropout": 1.5}, ["dropout", "1.5"]),
        ({"temperature": 0.0}, ["temperature", "0.0"]),
        ({"batches": "packed"}, ["packed", "truncation", "carry"]),
        ({"context": 4, "train": TrainConfig(steps=2)}, ["context=4", "zero"]),
        ({"batch_size": 100_000}, ["100", "000"]),
        ({"text": Path("no/such/book.txt")}, ["no/such/book.txt"]),
    ],
    ids=[
        "core",
        "core-file",
        "attention-heads",
        "lstm-heads",
        "option",
        "features",
        "option-type",
        "layers",
        "dropout",
        "temperature",
        "packed",
        "context",
        "batch",
        "file",
    ],
)
def test_wrong_input_is_said_and_makes_no_folder(changes, words, tmp_path, text_file):
    with pytest.raises((ValueError, OSError)) as error:
        main(small(tmp_path / "run", text_file, **changes) if "text" not in changes
             else dataclasses.replace(small(tmp_path / "run", text_file), **changes))  # fmt: skip
    assert all(word in str(error.value) for word in words), str(error.value)
    assert not (tmp_path / "run").exists()


def test_an_empty_text_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match=r"empty\.txt"):
        main(small(tmp_path / "run", tmp_path / "empty.txt"))


def test_a_folder_of_another_config_is_refused_with_the_difference(language_model_run):
    config, _ = language_model_run
    before = {f: f.read_bytes() for f in config.run.rglob("*") if f.is_file()}
    with pytest.raises(ConfigMismatchError, match=r"model\.features: 8 -> 16"):
        main(dataclasses.replace(config, model=dataclasses.replace(config.model, features=16)))
    assert before == {f: f.read_bytes() for f in config.run.rglob("*") if f.is_file()}


def test_the_command_line_says_one_line_and_exits_non_zero(tmp_path):
    command = [sys.executable, "experiments/language_model.py", "--core", "transformer", "--run", str(tmp_path / "r")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode not in (0, 75)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: unknown core 'transformer'"), done.stderr
