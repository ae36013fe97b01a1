"""The translation experiment as a user runs it: a run folder, a report, alignments; users' own pairs; clear errors."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("sacrebleu", reason="sacrebleu is not installed (extra `translation`)")
pytest.importorskip("babel", reason="Babel is not installed (extra `translation`)")

from experiments import translate
from experiments.translation import Config, main
from jaxseq.training import ConfigMismatchError, RunFolderError, TrainConfig, read_json

SHORT = TrainConfig(steps=6, log_every=3, checkpoint_every=3)


def config(tmp_path, **fields) -> Config:
    """A tiny run."""
    return Config(run=tmp_path / "run", train=SHORT, smoke=True, **fields)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run, its config and its results."""
    settings = config(tmp_path_factory.mktemp("translation"), task="reversal", longest=4, stretch=2)
    settings = dataclasses.replace(settings, scheduled_sampling=0.5, label_smoothing=0.1)
    return settings, main(settings)


def test_a_run_leaves_scores_alignments_and_a_report(made):
    settings, results = made
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
    with pytest.raises(ConfigMismatchError, match="fusion"):
        main(dataclasses.replace(settings, fusion="add"))


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "transformer", "target": "iso", "beams": 2, "coverage": 0.2, "positions": "concat"},
        pytest.param({"model": "rnn", "task": "names", "target": "ja", "bridge": "context"}, marks=pytest.mark.slow),
        pytest.param(
            {"model": "transformer", "encoder": "conv", "decoder": "mingru", "attention": "additive", "tied": "all"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["transformer", "rnn", "any encoder and decoder"],
)
def test_every_model_translates(tmp_path, fields):
    results = main(config(tmp_path, **fields))
    assert 0 <= results["exact_match"] <= 1 and np.isfinite(results["chrf"]) and results["held_out_pairs"] >= 30


def test_ones_own_pairs_are_read_and_bad_lines_are_named(tmp_path, capsys):
    words = [f"{a}{b}" for a in "abcdefgh" for b in "xyzuvw"]
    lines = [f"{word}\t{word.upper()}" for word in words]
    lines.insert(3, "no target")
    (tmp_path / "mine.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    results = main(config(tmp_path, pairs=tmp_path / "mine.tsv", tokens="bytes"))
    assert results["train_pairs"] + results["held_out_pairs"] == len(words)
    assert "mine.tsv:4: " in capsys.readouterr().out


def test_what_cannot_be_is_refused_by_name(tmp_path):
    for fields, message in (
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), not 1.0"),
        ({"coverage": 0.2}, "coverage=0.2 is of beams that attend"),
        ({"attention": "soft"}, "attention='soft'; known: auto, additive"),
        ({"stretch": 2, "task": "names"}, "stretch=2 is of dates and of reversal alone"),
        ({"number": 0}, "number must be at least 1, not 0"),
        ({"held_out_pairs": tmp_path / "x.tsv"}, "held_out_pairs=.* belongs to pairs"),
        ({"held_out_pairs_target": tmp_path / "x.tsv"}, "held_out_pairs_target=.* belongs to held_out_pairs"),
        ({"model": "rnn", "attention": "dot"}, "attention=dot does nothing with model=rnn"),
        ({"bridge": "context"}, "bridge=context does nothing with model=attention"),
        ({"feed_forward": 64}, "feed_forward=64 does nothing"),
        ({"positions": "concat"}, "positions=concat does nothing"),
        ({"model": "transformer", "positions": "concat", "tied": "head"}, "tied=head needs embeddings"),
        ({"feed_forward": 0}, "feed_forward must be at least 1, not 0"),
    ):
        with pytest.raises(ValueError, match=message):
            config(tmp_path, **fields)
    for fields, message in (
        ({"target": "xx_YY"}, "unknown locale 'xx_YY'"),
        ({"decoder": "conv"}, "the decoder has no state h"),
        ({"decoder": "conv", "bridge": "zero"}, "needs a state h to ask with"),
        ({"encoder": "lsmt"}, "unknown core 'lsmt'"),
        ({"bleu_tokenize": "14a"}, "unknown tokenizer '14a'"),
        ({"pairs": tmp_path / "none.tsv"}, "none.tsv"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            main(config(tmp_path, **fields))
    assert not (tmp_path / "run").exists()


def test_a_trained_run_translates_other_texts(made, tmp_path, capsys):
    run, picture, out = made[0].run, tmp_path / "where.png", tmp_path / "out.txt"
    texts = ("abc", "hello")
    found = translate.main(translate.Config(run=run, text=texts, max_length=9, alignment=picture))
    assert len(found) == 2 and all(len(line) <= 9 for line in found) and picture.read_bytes().startswith(b"\x89PNG")
    (tmp_path / "new.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    again = translate.main(translate.Config(run=run, file=tmp_path / "new.txt", max_length=9, output=out))
    assert again == found and out.read_text(encoding="utf-8").splitlines() == found
    for fields, message in (({"text": ("",)}, "text 1 is empty"), ({"max_length": 0}, "max_length must be at least 1")):
        with pytest.raises(ValueError, match=message):
            translate.main(translate.Config(run=run, **fields))
    with pytest.raises(RunFolderError, match="is no run folder"):
        translate.main(translate.Config(run=tmp_path, text=texts))
    capsys.readouterr()
