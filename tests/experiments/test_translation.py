"""The translation experiment as a user runs it: a run folder, a report, alignments; users' own pairs; clear errors."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from compilation import unoptimized

pytest.importorskip("sacrebleu", reason="sacrebleu is not installed (extra `translation`)")
pytest.importorskip("babel", reason="Babel is not installed (extra `translation`)")

from experiments import translate
from experiments.translation import Config, main
from jaxseq import data
from jaxseq.models.configs import AttentionTranslator, RNNTranslator, TransformerTranslator
from jaxseq.pipelines import Dates, Files, Names, Reversal, SearchConfig
from jaxseq.training import ConfigMismatchError, OptimizerConfig, RunFolderError, TrainConfig, read_json
from tests.experiments.small_runs import small_translation

FULL = pytest.mark.full


def parsed(line: str) -> Config:
    """The config of a command line."""
    return tyro.cli(tyro.conf.CascadeSubcommandArgs[Config], args=line.split())


def test_a_run_leaves_scores_alignments_and_a_report(translation_run):
    settings, results = translation_run
    written = read_json(settings.run / "results.json")
    assert written == results and results["steps"] == 10
    assert {"exact_match", "bleu", "chrf", "bleu_signature", "alignment_accuracy", "pairs_sha256"} <= set(results)
    assert "version" in results["bleu_signature"]
    rows = read_json(settings.run / "translations.json")
    assert {len(row["source"]) for row in rows} >= {5, 6, 7, 8} and all(r["target"] == r["source"][::-1] for r in rows)
    judged = rows[: results["held_out_pairs"]]
    assert results["exact_match"] == sum(row["target"] == row["found"] for row in judged) / len(judged)
    page = (settings.run / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") >= 3 and "Alignments" in page
    assert (settings.run / "figures" / "exact_match_by_length.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigMismatchError, match=r"model\.fusion"):
        main(dataclasses.replace(settings, model=AttentionTranslator(fusion="add")))


@FULL
@pytest.mark.parametrize(
    "fields",
    [
        {
            "model": TransformerTranslator(positions="concat"),
            "task": Dates(target="iso"),
            "search": SearchConfig(beams=2, coverage=0.2),
        },
        {"model": RNNTranslator(fusion="concat"), "task": Names(target="ja"), "scheduled_sampling": 0.5},
        {"model": TransformerTranslator(encoder="conv", decoder="mingru", attention="additive", tied="all")},
        {"model": AttentionTranslator(encoder="transformer", attention="multi_head", bridge="zero", layers=2)},
    ],
    ids=["transformer", "rnn", "any encoder and decoder", "attention over a transformer"],
)
def test_every_model_translates(tmp_path, fields):
    results = main(small_translation(tmp_path / "run", **fields))
    assert 0 <= results["exact_match"] <= 1 and np.isfinite(results["chrf"]) and results["held_out_pairs"] >= 30


@FULL
def test_ones_own_pairs_are_read_and_bad_lines_are_named(tmp_path, capsys):
    words = [f"{a}{b}" for a in "abcdefgh" for b in "xyzuvw"]
    lines = [f"{word}\t{word.upper()}" for word in words]
    lines.insert(3, "no target")
    (tmp_path / "mine.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    results = main(small_translation(tmp_path / "run", task=Files(tmp_path / "mine.tsv"), tokens="bytes"))
    assert results["train_pairs"] + results["held_out_pairs"] == len(words)
    assert "mine.tsv:4: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "parameters"),
    [(AttentionTranslator(), 411_564), (TransformerTranslator(), 242_156)],
    ids=["attention", "transformer"],
)
def test_the_default_models_are_the_documented_ones(model, parameters):
    """The parameters of docs/translation.md for dates from English to German, whose vocabularies have these sizes."""
    translator = model.build(43, 44)
    tokens = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(translator.init, jax.random.key(0), tokens, tokens)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters


def test_a_model_brings_its_training_defaults_which_options_replace():
    for line, steps, rate in (
        ("", 1000, 3e-3),
        ("model:transformer", 1400, 4e-3),
        ("model:rnn --optimizer.learning-rate 1e-3", 600, 1e-3),
        ("--train.steps 7 model:transformer", 7, 4e-3),
    ):
        config = parsed(line)
        assert (config.train.steps, config.optimizer.learning_rate) == (steps, rate)
    assert Config(train=TrainConfig(steps=5), optimizer=OptimizerConfig(learning_rate=0.1)).train.steps == 5


def test_options_stand_behind_what_they_belong_to_in_any_order():
    line = "--run r model:transformer --features 32 task:reversal --max-string-length 5 --train.steps 3 --beams 2"
    config = parsed(line)
    assert config.model == TransformerTranslator(features=32) and config.task == Reversal(max_string_length=5)
    assert (config.run, config.train.steps, config.search.beams) == (Path("r"), 3, 2)
    assert parsed("task:reversal model:transformer --max-string-length 5 --features 32").model == config.model
    assert parsed("--target iso --fusion add") == Config(
        task=Dates(target="iso"), model=AttentionTranslator(fusion="add")
    )
    for idle in ("model:rnn --attention dot", "model:attention --feed-forward 64", "task:names --num-pairs 3"):
        with pytest.raises(SystemExit):
            parsed(idle)


def test_what_cannot_be_is_refused_by_name(tmp_path):
    for made, message in (
        (lambda: RNNTranslator(dropout=1.0), r"dropout must be in \[0, 1\), not 1.0"),
        (lambda: RNNTranslator(bridge="zero"), "bridge=zero needs a fusion"),
        (lambda: SearchConfig(coverage=0.2), "coverage=0.2 belongs to beam search"),
        (lambda: AttentionTranslator(attention="soft"), "attention='soft'; known: additive"),
        (lambda: Dates(num_pairs=0), "num_pairs must be at least 1, not 0"),
        (lambda: Files(tmp_path / "x.tsv", held_out_target=tmp_path / "y"), "held_out_target=.* belongs to held_out"),
        (lambda: TransformerTranslator(encoder="conv", positions="concat"), "positions=concat needs self-attention"),
        (lambda: TransformerTranslator(positions="concat", tied="head"), "tied=head needs embeddings"),
        (lambda: TransformerTranslator(feed_forward=0), "feed_forward must be at least 1, not 0"),
        (lambda: Config(label_smoothing=1.0), r"label_smoothing must be in \[0, 1\), not 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            made()
    for fields, message in (
        ({"task": Dates(target="xx_YY")}, "unknown locale 'xx_YY'"),
        ({"model": AttentionTranslator(decoder="conv", bridge="zero")}, "state.* h"),
        ({"model": RNNTranslator(encoder="lsmt")}, "unknown core 'lsmt'"),
        ({"model": RNNTranslator(), "search": SearchConfig(beams=2, coverage=0.2)}, "coverage=0.2 needs a model that"),
        ({"bleu_tokenize": "14a"}, "unknown tokenizer '14a'"),
        ({"task": Files(tmp_path / "none.tsv")}, "none.tsv"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            main(small_translation(tmp_path / "run", **({"task": Reversal(max_string_length=4)} | fields)))
    assert not (tmp_path / "run").exists()


@pytest.mark.full
def test_a_trained_run_translates_other_texts(translation_run, tmp_path, capsys):
    run, picture, out = translation_run[0].run, tmp_path / "where.png", tmp_path / "out.txt"
    texts = ("abc", "hello")
    (tmp_path / "new.txt").write_text("hello\n", encoding="utf-8")
    options = {"max_length": 9, "alignment": picture, "output": out}
    with unoptimized():
        found = translate.main(translate.Config(run=run, text=texts[:1], file=tmp_path / "new.txt", **options))
    assert len(found) == 2 and all(len(line) <= 9 for line in found) and picture.read_bytes().startswith(b"\x89PNG")
    assert out.read_text(encoding="utf-8").splitlines() == found
    with pytest.raises(ValueError, match="max_length must be at least 1"):
        translate.main(translate.Config(run=run, max_length=0))
    with pytest.raises(ValueError, match=r"alignment=.*: there is no folder"):
        translate.main(translate.Config(run=run, text=texts, alignment=tmp_path / "no" / "x.png"))
    with pytest.raises(RunFolderError, match="is not a run folder"):
        translate.main(translate.Config(run=tmp_path, text=texts))
    capsys.readouterr()
    (tmp_path / "lines.txt").write_bytes("hello\n\nabc\r\n ab\u2028c\x85\x0c\rd\n".encode())
    with unoptimized():
        found = translate.main(translate.Config(run=run, file=tmp_path / "lines.txt", output=out, max_length=9))
    assert (
        len(found) == 4
        and found[1] == ""
        and found[0]
        and out.read_bytes().split(b"\n")[:-1] == [line.encode() for line in found]
    )
    config = translate.Config(run=run, output=tmp_path / "out.jsonl")
    translate.write(config, ["a\nb", ""], ["x\ny\u2028", ""])
    assert data.read_texts(tmp_path / "out.jsonl", field="target") == ("x\ny\u2028", "")
    assert data.read_texts(tmp_path / "out.jsonl") == ("a\nb", "")
    for name in ("out.jsonl.gz", "out.gz"):
        translate.write(translate.Config(run=run, output=tmp_path / name), ["a"], ["x"])
    assert data.read_texts(tmp_path / "out.jsonl.gz") == ("a",) and data.read_texts(tmp_path / "out.gz") == ("x",)
    with pytest.raises(ValueError, match="alignment draws the first text that is not blank: there is none"):
        translate.main(translate.Config(run=run, text=(" ",), alignment=picture))
    translate.write(translate.Config(run=run, output=out), ["a", "b"], ["x\r\ny\u2028\r", "z"])
    assert out.read_bytes() == "x y\u2028 \nz\n".encode() and "written as a space: 1" in capsys.readouterr().err
