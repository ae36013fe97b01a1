"""Tasks for detectors: sources of images with objects. Each class has only the fields that it reads."""

import abc
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

from jaxseq.data.detection import (
    DETECTION_SCENES,
    DetectionCorpus,
    read_coco_instances,
    read_voc,
    scene_detection_corpus,
)
from jaxseq.data.images import ImageOptions, SceneDesign
from jaxseq.pipelines.pair_tasks import check_minimum

T = TypeVar("T", bound="DetectionFiles")


@dataclass(frozen=True)
class DetectionScenes:
    """Scenes of real digits on real photographs, made on the fly, with exact boxes; the classes are the digits."""

    design: SceneDesign = field(default_factory=lambda: DETECTION_SCENES)
    train_images: int = 4000
    """Number of scenes to train on."""
    validation_images: int = 300
    """Number of scenes for evaluations during training."""
    test_images: int = 500
    """Number of scenes that are scored at the end."""

    def __post_init__(self) -> None:
        check_minimum(self, train_images=1, validation_images=1, test_images=1)

    def corpus(self, seed: int, cache: Path) -> DetectionCorpus:
        """The scenes, drawn from the seed; nothing is cached."""
        del cache
        counts = {"train": self.train_images, "validation": self.validation_images, "test": self.test_images}
        return scene_detection_corpus(self.design, **counts, seed=seed)

    def smoke(self) -> "DetectionScenes":
        """The same task with few images."""
        return replace(self, train_images=16, validation_images=4, test_images=6)


@dataclass(frozen=True, kw_only=True)
class DetectionFiles(abc.ABC):
    """Abstract: objects in files, and a folder of images. A subclass defines ``read`` and ``folders``."""

    image_size: int = 224
    """Height and width of the images in pixels."""
    resize: Literal["pad", "squash"] = "pad"
    """squash: both sides on their own; pad: black borders."""

    def __post_init__(self) -> None:
        check_minimum(self, image_size=1)

    @property
    @abc.abstractmethod
    def folders(self) -> dict[str, Path]:
        """The folders that must be there, by the names of their fields."""

    @abc.abstractmethod
    def read(self, images: ImageOptions, seed: int) -> DetectionCorpus:
        """Read the objects, and the images with these options."""

    def corpus(self, seed: int, cache: Path) -> DetectionCorpus:
        """The images with objects; resized images are kept in ``cache``.

        Raises:
            ValueError: a part without images, a training part without objects, or a folder that is not there.
        """
        for name, folder in self.folders.items():
            if not folder.is_dir():
                raise ValueError(f"{name}={folder} is not a folder")
        corpus = self.read(ImageOptions((self.image_size, self.image_size), self.resize, cache), seed)
        for name, part in corpus.parts.items():
            if not part.names:
                raise ValueError(
                    f"{corpus.description}: the {name} part has no images; if the files name no splits, each image "
                    "is in the validation part with probability 1/10, and in the test part as well"
                )
        if all(objects.ignored.all() for objects in corpus.train.objects):
            raise ValueError(f"{corpus.description}: no object to train on")
        return corpus

    def smoke(self: T) -> T:
        """The same task: its size is that of the files."""
        return self


@dataclass(frozen=True, kw_only=True)
class CocoInstances(DetectionFiles):
    """COCO's instances, or your own objects in that layout."""

    annotations: Path
    """instances_train2017.json, or a file like it."""
    images: Path
    """The folder of its images."""
    held_out: Path | None = None
    """instances_val2017.json; its images are divided between validation and test. A tenth each if not given."""
    held_out_images: Path | None = None
    """The folder of the held-out images."""
    test: Path | None = None
    """A third such file for testing; all held-out images are for validation then."""
    test_images: Path | None = None
    """The folder of the test images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("held_out", "test"):
            if (getattr(self, name) is None) != (getattr(self, f"{name}_images") is None):
                raise ValueError(f"{name} and {name}_images belong together: one is not given")
        if self.test is not None and self.held_out is None:
            raise ValueError("test needs held_out: without it there are no images to validate by")

    @property
    def folders(self) -> dict[str, Path]:
        """The folders of images."""
        given = {"images": self.images, "held_out_images": self.held_out_images, "test_images": self.test_images}
        return {name: folder for name, folder in given.items() if folder is not None}

    def read(self, images: ImageOptions, seed: int) -> DetectionCorpus:
        """The objects in the layout of COCO."""
        held_out = test = None
        if self.held_out is not None and self.held_out_images is not None:
            held_out = self.held_out, self.held_out_images
        if self.test is not None and self.test_images is not None:
            test = self.test, self.test_images
        return read_coco_instances(
            self.annotations, self.images, held_out=held_out, test=test, images=images, seed=seed
        )


@dataclass(frozen=True, kw_only=True)
class Voc(DetectionFiles):
    """Pascal VOC, or your own objects in that layout."""

    folder: Path
    """VOCdevkit/VOC2007: the folder with Annotations, JPEGImages and ImageSets."""

    @property
    def folders(self) -> dict[str, Path]:
        """The folder, and that of its annotations."""
        return {"folder": self.folder, "folder/Annotations": self.folder / "Annotations"}

    def read(self, images: ImageOptions, seed: int) -> DetectionCorpus:
        """The objects in the layout of Pascal VOC."""
        return read_voc(self.folder, images=images, seed=seed)
