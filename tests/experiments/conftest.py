"""Run folders that several files of tests use, made once."""

from pathlib import Path

import pytest
from compilation import unoptimized

from experiments import captioning, detection, language_model, translation
from jaxseq.models.configs import AttentionTranslator
from jaxseq.pipelines import Reversal
from tests.experiments.small_runs import (
    small_captioning,
    small_detection,
    small_language_model,
    small_translation,
    write_book,
)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    """A text file of one's own."""
    return write_book(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def language_model_run(tmp_path_factory, text_file):
    """The config and the results of a finished run of a recurrent model of characters."""
    config = small_language_model(tmp_path_factory.mktemp("language-model") / "run", text_file)
    return config, language_model.main(config)


@pytest.fixture(scope="session")
def translation_run(tmp_path_factory):
    """The config and the results of a finished run of a translator that reverses strings."""
    task, model = Reversal(max_string_length=4, length_extrapolation=2), AttentionTranslator()
    options = {"label_smoothing": 0.1, "buckets": 1}
    config = small_translation(tmp_path_factory.mktemp("translation") / "run", task=task, model=model, **options)
    with unoptimized():
        return config, translation.main(config)


@pytest.fixture(scope="session")
def captioning_run(tmp_path_factory):
    """The config and the results of a finished run of the smallest captioner of scenes: an Elman RNN."""
    pytest.importorskip("skimage", reason="scikit-image is not installed (extra `images`)")
    pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra `images`)")
    run = tmp_path_factory.mktemp("captioning") / "run"
    config = small_captioning(run, decoder="rnn", samples=1, compared_beams=1)
    with unoptimized():
        return config, captioning.main(config)


@pytest.fixture(scope="session")
def detection_run(tmp_path_factory):
    """The config and the results of a finished run of the smallest Fast R-CNN on scenes."""
    pytest.importorskip("skimage", reason="scikit-image is not installed (extra `images`)")
    pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra `images`)")
    config = small_detection(tmp_path_factory.mktemp("detection") / "run", samples=2)
    with unoptimized():
        return config, detection.main(config)


@pytest.fixture(scope="session")
def rcnn_run(tmp_path_factory):
    """The config and the results of a finished run of the smallest R-CNN on scenes, with dropout."""
    pytest.importorskip("skimage", reason="scikit-image is not installed (extra `images`)")
    pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra `images`)")
    run = tmp_path_factory.mktemp("rcnn") / "run"
    config = small_detection(run, model="rcnn", dropout=0.1, crop_size=16, context=1, samples=0)
    with unoptimized():
        return config, detection.main(config)
