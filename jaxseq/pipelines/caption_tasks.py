"""Tasks for captioners: sources of captioned images. Each class has only the fields that it reads."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from jaxseq import data
from jaxseq.data.images import CaptionCorpus, SceneDesign, scene_corpus
from jaxseq.pipelines.pair_tasks import check_minimum


@dataclass(frozen=True)
class Scenes:
    """Scenes of real digits on real photographs, made on the fly; captions name digits, colours and relations."""

    tokenizer: ClassVar[str] = "words"
    resize: ClassVar[str] = "squash"

    design: SceneDesign = field(default_factory=SceneDesign)
    train_images: int = 20_000
    validation_images: int = 500
    test_images: int = 1000

    def __post_init__(self) -> None:
        check_minimum(self, train_images=1, validation_images=1, test_images=1)

    def corpus(self, seed: int) -> CaptionCorpus:
        """The scenes, drawn from the seed."""
        counts = {"train": self.train_images, "validation": self.validation_images, "test": self.test_images}
        return scene_corpus(self.design, **counts, seed=seed)

    def smoke(self) -> "Scenes":
        """The same task with few images."""
        return replace(self, train_images=16, validation_images=4, test_images=6)

    def vocabulary(self, corpus: CaptionCorpus) -> data.Words:
        """All words of the training captions."""
        return data.Words.fit(text for texts in corpus.train.captions for text in texts)
