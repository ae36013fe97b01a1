"""The translation experiment as a user runs it: a run folder, a report, alignments; users' own pairs; clear errors."""

import dataclasses
import json

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


def test_a_run_leaves_scores_alignments_and_a_report_and_goes_on(tmp_path):
    made = config(tmp_path, task="reversal", longest=4, stretch=2, scheduled_sampling=0.5, label_smoothing=0.1)
    results = main(made)
    folder = tmp_path / "run"
    written = read_json(folder / "results.json")
    assert written == results
    assert {"exact_match", "bleu", "chrf", "bleu_signature", "alignment_accuracy", "pairs_sha256"} <= set(results)
    assert "version" in results["bleu_signature"] and results["steps"] == 10
    rows = read_json(folder / "translations.json")
    assert {len(row["source"]) for row in rows} >= {5, 6, 7, 8} and all(r["target"] == r["source"][::-1] for r in rows)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") >= 3 and "Alignments" in page
    assert (folder / "figures" / "exact_match_by_length.png").read_bytes().startswith(b"\x89PNG")
    again = main(made)
    assert again["exact_match"] == results["exact_match"] and again["chrf"] == results["chrf"]
    with pytest.raises(ConfigMismatchError, match="fusion"):
        main(dataclasses.replace(made, fusion="add"))


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "transformer", "target": "iso", "beams": 2, "coverage": 0.2, "positions": "concat"},
        {"model": "rnn", "task": "names", "target": "ja", "bridge": "context", "fusion": "multiply", "encoder": "gru"},
        {"model": "transformer", "encoder": "conv", "decoder": "mingru", "attention": "additive", "tied": "all"},
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
    for name, side in (("a.txt", str.lower), ("b.txt", str.upper)):
        (tmp_path / name).write_text("\n".join(map(side, words)) + "\n", encoding="utf-8")
    aligned = Config(
        run=tmp_path / "two", train=SHORT, smoke=True, pairs=tmp_path / "a.txt", pairs_target=tmp_path / "b.txt"
    )
    assert main(aligned)["train_pairs"] == results["train_pairs"]


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
        ({"decoder": "conv"}, "needs a state h to ask with"),
        ({"encoder": "lsmt"}, "unknown core 'lsmt'"),
        ({"bleu_tokenize": "14a"}, "unknown tokenizer '14a'"),
        ({"pairs": tmp_path / "none.tsv"}, "none.tsv"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            main(config(tmp_path, **fields))
    assert not (tmp_path / "run").exists()


def test_a_trained_run_translates_other_texts(tmp_path, capsys):
    main(config(tmp_path, model="transformer"))
    run, picture = tmp_path / "run", tmp_path / "where.png"
    texts = ("March 3, 2031", "Friday, May 2, 1930")
    found = translate.main(translate.Config(run=run, text=texts, beams=2, max_length=9, alignment=picture))
    assert len(found) == 2 and all(len(line) <= 9 for line in found) and picture.read_bytes().startswith(b"\x89PNG")
    (tmp_path / "new.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    out = tmp_path / "out.txt"
    again = translate.main(translate.Config(run=run, file=tmp_path / "new.txt", beams=2, max_length=9, output=out))
    assert again == found and out.read_text(encoding="utf-8").splitlines() == found
    for fields, message in (({"text": ("",)}, "text 1 is empty"), ({"max_length": 0}, "max_length must be at least 1")):
        with pytest.raises(ValueError, match=message):
            translate.main(translate.Config(run=run, **fields))
    with pytest.raises(RunFolderError, match="is no run folder"):
        translate.main(translate.Config(run=tmp_path, text=texts))
    capsys.readouterr()


def test_results_are_those_of_the_translations_written(tmp_path):
    results = main(config(tmp_path))
    rows = json.loads((tmp_path / "run" / "translations.json").read_text(encoding="utf-8"))
    right = sum(row["target"] == row["found"] for row in rows) / len(rows)
    assert results["exact_match"] == right and len(rows) == results["held_out_pairs"]
