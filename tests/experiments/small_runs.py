"""Small runs of the experiments."""

from pathlib import Path

import numpy as np

from experiments import captioning, detection, language_model, translation
from jaxseq import training
from jaxseq.data.proposals import SlidingWindows
from jaxseq.models import CaptionerConfig
from jaxseq.models.configs import LanguageModelConfig
from jaxseq.models.detection import DetectorConfig

TEXT = "the quick brown fox jumps over the lazy dog, and the café ☃ does not mind at all. ABCDEFGH"


def write_book(folder: Path) -> Path:
    """A text file: words in a random order, so that no part is a copy of another."""
    random = np.random.default_rng(0)
    file = folder / "book.txt"
    file.write_text("\n\n".join(" ".join(random.choice(TEXT.split(), 40)) for _ in range(60)), encoding="utf-8")
    return file


def small_language_model(run: Path, text: Path, **changes) -> language_model.Config:
    """A tiny model, a few steps, with a moving average; ``changes`` are fields of the config or of its model."""
    train = training.TrainConfig(steps=6, truncation="carry", log_every=2, checkpoint_every=2, ema_decay=0.5)
    model = {"core": "elman", "features": 8}
    model |= {name: changes.pop(name) for name in [*changes] if name in LanguageModelConfig.__dataclass_fields__}
    options = {"batch_size": 2, "length": 8, "samples": 1, "sample_length": 12, "train": train}
    options["optimizer"] = training.OptimizerConfig(learning_rate=3e-2)
    return language_model.Config(run=run, text=text, model=LanguageModelConfig(**model), **(options | changes))


def small_translation(run: Path, **changes) -> translation.Config:
    """A smoke run; ``changes`` are fields of the config."""
    return translation.Config(**({"run": run, "smoke": True} | changes))


def small_captioning(run: Path, **changes) -> captioning.Config:
    """A smoke run on patches of scenes; ``changes`` are fields of the config or of its model."""
    model = {"encoder": "patches", "patch_size": 16}
    model |= {name: changes.pop(name) for name in [*changes] if name in CaptionerConfig.__dataclass_fields__}
    return captioning.Config(**({"run": run, "model": CaptionerConfig(**model), "smoke": True} | changes))


def small_detection(run: Path, **changes) -> detection.Config:
    """A smoke run on patches of scenes and windows; ``changes`` are fields of the config or of its detector."""
    model = {"encoder": "patches"}
    model |= {name: changes.pop(name) for name in [*changes] if name in DetectorConfig.__dataclass_fields__}
    options = {"run": run, "cache": run.parent / "cache", "proposals": SlidingWindows(), "smoke": True}
    return detection.Config(**(options | {"detector": DetectorConfig(**model)} | changes))
