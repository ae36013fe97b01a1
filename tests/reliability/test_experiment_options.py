"""Options of what follows training are refused before it, and a report without samples is written without them."""

from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import caption, captioning, detection, generate, language_model, translate, translation
from jaxseq.analysis import coco_libraries
from jaxseq.pipelines import Reversal, SearchConfig, check_decoding_memory
from tests.compilation import unoptimized
from tests.experiments.small_runs import (
    small_captioning,
    small_detection,
    small_language_model,
    small_translation,
    write_book,
)

TASK = {"task": Reversal(max_string_length=4)}
MAKE = {
    "language_model": (language_model, lambda run, **given: small_language_model(run, write_book(run.parent), **given)),
    "translation": (translation, lambda run, **given: small_translation(run, **(TASK | given))),
    "captioning": (captioning, lambda run, **given: small_captioning(run, compared_beams=1, **given)),
    "detection": (detection, small_detection),
}
"""The module of an experiment, and a small config of it."""


@pytest.mark.parametrize(
    "experiment",
    [pytest.param(name, marks=pytest.mark.full if name == "language_model" else pytest.mark.slow) for name in MAKE],
)
def test_without_samples_the_report_is_written_without_them(tmp_path, experiment):
    if experiment in ("captioning", "detection"):
        pytest.importorskip("skimage", reason="scikit-image is not installed (extra `images`)")
    module, make = MAKE[experiment]
    with unoptimized():
        module.main(make(tmp_path / "run", samples=0))
    assert (tmp_path / "run" / "report.html").is_file() and (tmp_path / "run" / "results.json").is_file()


@pytest.mark.full
@pytest.mark.parametrize(
    ("experiment", "changes", "said"),
    [
        ("translation", {"search": SearchConfig(beams=10**9)}, r"beams.*lower beams or max_length"),
        ("translation", {"bleu_tokenize": "no"}, "unknown tokenizer"),
        ("captioning", {"search": SearchConfig(beams=10**9)}, r"beams.*lower beams or max_length"),
        ("detection", {"coco": "pycocotools"}, "COCO's scores by pycocotools need it"),
        pytest.param(
            "detection", {"hidden": 10**8}, "parameters .* lower hidden or pooled_size", marks=pytest.mark.slow
        ),
        ("translation", {"model": "huge"}, "parameters .* lower features, layers, feed_forward or vocabulary_size"),
        ("language_model", {"features": 3 * 10**6}, "18,000,.* parameters .* lower features"),
    ],
)
def test_what_would_fail_after_training_is_refused_before_a_folder_is_made(
    tmp_path, monkeypatch, experiment, changes, said
):
    module, make = MAKE[experiment]
    if {"hidden", "model"} & {*changes}:
        monkeypatch.setattr(module, "smoke", lambda config: config)  # which sets these sizes

    def missing(library: str) -> None:
        raise ImportError(f"COCO's scores by {library} need it")

    monkeypatch.setattr(coco_libraries, "coco_classes", missing)
    monkeypatch.setattr(detection, "coco_classes", missing)
    if changes.get("model") == "huge":
        changes = {"model": translation.RNNTranslator(features=10**6)}
    with pytest.raises((ValueError, ImportError), match=said) as caught:
        module.main(make(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists() and "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".jpg", "", ".gif"])
def test_a_figure_of_an_unknown_format_is_refused_with_the_options(suffix):
    file = Path(f"figure{suffix}")
    for make in (
        lambda: generate.Config(Path("run"), beams=2, tree=file),
        lambda: translate.Config(Path("run"), alignment=file),
        lambda: caption.Config(Path("run"), (Path("a.png"),), attention=file),
    ):
        with pytest.raises(ValueError, match=rf"{file.name} is not a figure's file: known are \.png, \.svg, \.pdf"):
            make()
    for known in (".png", ".svg", ".PDF"):
        generate.Config(Path("run"), beams=2, tree=Path(f"figure{known}"))


def test_the_options_of_sampling_and_search_are_checked_where_they_are_given():
    for make, said in (
        (lambda: language_model.Config(temperature=1e-40), "temperature must be above 0 and finite, not"),
        (lambda: generate.Config(Path("run"), temperature=0.0), "temperature must be above 0, not 0"),
        (lambda: generate.Config(Path("run"), beams=2, results=3), r"num_results must be in \[1, 2\]"),
        (lambda: generate.Config(Path("run"), no_repeat_ngrams=0), "no_repeat_ngrams must be at least 1, not 0"),
        (lambda: caption.Config(Path("run"), (Path("a"),), samples=1, temperature=0.0), "temperature must be above 0"),
    ):
        with pytest.raises(ValueError, match=said):
            make()


def test_more_hypotheses_than_the_memory_holds_are_refused():
    row = {"h": jax.ShapeDtypeStruct((1, 256), np.float32)}
    check_decoding_memory(row, 1000, vocab_size=100, max_length=200, name="beams")
    said = r"^1,000,000,000 hypotheses at once \(beams\) need 7,296.0 GB of memory, .*: lower beams or max_length$"
    with pytest.raises(ValueError, match=said):
        check_decoding_memory(row, 10**9, vocab_size=100, max_length=100, name="beams")
