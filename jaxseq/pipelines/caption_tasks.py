"""Tasks for captioners: sources of captioned images. Each class has only the fields that it reads."""

import abc
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, TypeVar

from jaxseq import data
from jaxseq.data.images import (
    CaptionCorpus,
    ImageOptions,
    ResizeMode,
    SceneDesign,
    read_caption_tsv,
    read_coco_captions,
    read_flickr,
    read_karpathy,
    scene_corpus,
)
from jaxseq.pipelines.pair_tasks import check_minimum

T = TypeVar("T", bound="CaptionFiles")


@dataclass(frozen=True)
class Scenes:
    """Scenes of real digits on real photographs, made on the fly; captions name digits, colours and relations."""

    tokenizer: ClassVar[str] = "words"
    resize: ClassVar[ResizeMode] = "squash"

    design: SceneDesign = field(default_factory=SceneDesign)
    train_images: int = 128_000
    """Number of scenes to train on."""
    validation_images: int = 500
    """Number of scenes for evaluations during training."""
    test_images: int = 1000
    """Number of scenes that are scored at the end."""

    def __post_init__(self) -> None:
        check_minimum(self, train_images=1, validation_images=1, test_images=1)

    def corpus(self, seed: int, cache: Path) -> CaptionCorpus:
        """The scenes, drawn from the seed; nothing is cached."""
        del cache
        counts = {"train": self.train_images, "validation": self.validation_images, "test": self.test_images}
        return scene_corpus(self.design, **counts, seed=seed)

    def smoke(self) -> "Scenes":
        """The same task with few images."""
        return replace(self, train_images=16, validation_images=4, test_images=6)

    def vocabulary(self, corpus: CaptionCorpus) -> data.Words:
        """All words of the training captions."""
        return data.Words.fit(text for texts in corpus.train.captions for text in texts)


@dataclass(frozen=True, kw_only=True)
class CaptionFiles(abc.ABC):
    """Abstract: captions in files, and a folder of images. A subclass defines ``read``."""

    tokenizer: ClassVar[str] = "ptb"

    image_size: int = 224
    """Height and width of the images in pixels."""
    resize: ResizeMode = "crop"
    """squash: both sides on their own; crop: the centre; pad: black borders."""
    min_count: int = 5
    """Words that occur less often in the training captions are <unk>."""
    max_words: int = 30
    """Training captions are cut after this number of words."""

    def __post_init__(self) -> None:
        check_minimum(self, image_size=1, min_count=1, max_words=1)

    @abc.abstractmethod
    def read(self, images: ImageOptions, seed: int) -> CaptionCorpus:
        """Read the captions, and the images with these options."""

    def corpus(self, seed: int, cache: Path) -> CaptionCorpus:
        """The captioned images; resized images are kept in ``cache``.

        Raises:
            ValueError: a part without images, or a folder of images that is not there.
        """
        for name in ("images", "held_out_images"):
            folder = getattr(self, name, None)
            if folder is not None and not folder.is_dir():
                raise ValueError(f"{name}={folder} is not a folder")
        options = ImageOptions((self.image_size, self.image_size), self.resize, cache)
        corpus = self.read(options, seed)
        for name, part in corpus.parts.items():
            if not part.names:
                raise ValueError(
                    f"{corpus.description}: the {name} part has no images; if the files name no splits, each image "
                    "is in the validation part with probability 1/10, and in the test part as well"
                )
        return corpus

    def smoke(self: T) -> T:
        """The same task: its size is that of the files."""
        return self

    def vocabulary(self, corpus: CaptionCorpus) -> data.Words:
        """The words of the training captions, without punctuation."""
        texts = (text for texts in corpus.train.captions for text in texts)
        return data.Words.fit(texts, min_count=self.min_count, max_words=self.max_words, punctuation=False)


@dataclass(frozen=True, kw_only=True)
class Coco(CaptionFiles):
    """COCO's captions."""

    captions: Path
    """captions_train2017.json, or a file like it."""
    images: Path
    """The folder of its images."""
    held_out: Path | None = None
    """captions_val2017.json; its images are divided between validation and test. A tenth each if not given."""
    held_out_images: Path | None = None
    """The folder of the held-out images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.held_out is None) != (self.held_out_images is None):
            raise ValueError("held_out and held_out_images belong together: one is not given")

    def read(self, images: ImageOptions, seed: int) -> CaptionCorpus:
        """The captions in the layout of COCO."""
        held_out = None
        if self.held_out is not None and self.held_out_images is not None:
            held_out = self.held_out, self.held_out_images
        return read_coco_captions(self.captions, self.images, held_out=held_out, images=images, seed=seed)


@dataclass(frozen=True, kw_only=True)
class Karpathy(CaptionFiles):
    """Karpathy's splits of COCO, Flickr8k or Flickr30k."""

    captions: Path
    """dataset_coco.json, dataset_flickr8k.json or dataset_flickr30k.json."""
    images: Path
    """The folder of the images."""

    def read(self, images: ImageOptions, seed: int) -> CaptionCorpus:
        """The captions in the layout of Karpathy and Li (2015)."""
        return read_karpathy(self.captions, self.images, images=images, seed=seed)


@dataclass(frozen=True, kw_only=True)
class Flickr(CaptionFiles):
    """Flickr8k or Flickr30k."""

    captions: Path
    """Flickr8k.token.txt, results_20130124.token, results.csv or captions.txt."""
    images: Path
    """The folder of the images."""
    train: Path | None = None
    """Flickr_8k.trainImages.txt: the names of the images to train on."""
    validation: Path | None = None
    """Flickr_8k.devImages.txt."""
    test: Path | None = None
    """Flickr_8k.testImages.txt."""

    def read(self, images: ImageOptions, seed: int) -> CaptionCorpus:
        """The captions in one of the layouts of Flickr8k and Flickr30k."""
        lists = {"train": self.train, "validation": self.validation, "test": self.test}
        return read_flickr(self.captions, self.images, images=images, seed=seed, **lists)


@dataclass(frozen=True, kw_only=True)
class Folder(CaptionFiles):
    """Your own images."""

    captions: Path
    """A table: file, tab, caption, and optionally tab and split (train, val, test)."""
    images: Path | None = None
    """The folder of the images; that of the table if not given."""

    def read(self, images: ImageOptions, seed: int) -> CaptionCorpus:
        """The captions of the table."""
        return read_caption_tsv(self.captions, self.images, images=images, seed=seed)
