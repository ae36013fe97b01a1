"""Caption images with a trained captioner.

    python experiments/caption.py --run runs/scenes --images a.jpg b.png
    python experiments/caption.py --run runs/scenes --images photographs --beams 4 --output captions.jsonl
    python experiments/caption.py --run runs/scenes --images a.jpg --samples 5 --temperature 0.8
    python experiments/caption.py --run runs/scenes --images a.jpg --attention where.png

One line for each image: its path, a tab, and the caption; with --samples one line for each sample. A folder stands for
the image files in it, in the order of their names. A file that gives no image is named, skipped and counted. The run
folder is one that captioning.py wrote. It is only read, and can be used while its run trains.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import tyro

from jaxseq import decoding, distribution, pipelines, plotting, training
from jaxseq.data.images import ImageFiles
from jaxseq.files import write_output
from jaxseq.pipelines import Caption


@dataclass(frozen=True)
class Config:
    """The model and the images; by default, decoding uses the settings saved with the run."""

    run: Path
    """A run folder of captioning.py."""
    images: tuple[Path, ...]
    """Image files, and folders of them."""
    output: Path | None = None
    """Write the captions to this file instead of printing them; to a .jsonl file one object {"image": ..., "caption":
    ..., "log_probability": ...} per line."""
    beams: int | None = None
    """Number of beams; 1 is greedy decoding."""
    normalization: Literal["none", "mean", "gnmt"] | None = None
    """Divisor of a beam's log-probability: 1, its length, or (gnmt) ((5 + length) / 6)^0.6."""
    coverage: float | None = None
    """Strength of beam search's coverage penalty."""
    max_length: int | None = None
    """Maximum number of tokens of a caption; by default 1.5 times the longest training caption."""
    samples: int | None = None
    """Draw this number of captions of each image instead of searching for the best."""
    temperature: float = 1.0
    """Divides the logits of samples; below 1 sharpens their distribution."""
    seed: int = 0
    """Draws the samples."""
    attention: Path | None = None
    """Draw the attention at each word of the first image's caption (PNG, SVG, PDF)."""
    mesh: str | None = None
    """The devices among which the images of a batch are divided: data=-1 or data=4; one device if not given."""
    access: tyro.conf.OmitArgPrefixes[pipelines.RunAccess] = pipelines.RunAccess()

    def __post_init__(self) -> None:
        training.check_numbers(self)
        if not self.images:
            raise ValueError("there is no image to caption: --images")
        for name, least in {"samples": 1, "max_length": 1, "beams": 1, "coverage": 0}.items():
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.attention is not None:
            plotting.figure_format(self.attention)
        decoding.SamplingOptions(self.temperature)
        searched = [name for name in ("beams", "normalization", "coverage") if getattr(self, name) is not None]
        if self.samples is not None and searched:
            raise ValueError(f"{searched[0]} is an option of a search, not of samples")
        if self.samples is None and (self.temperature != 1 or self.seed):
            raise ValueError("temperature and seed are options of samples, whose number is not given")


def main(config: Config) -> list[list[Caption]]:
    """Load the model, caption, print; returns the captions of each image that could be read."""
    placement = distribution.Placement.on(config.mesh)
    training.enable_compilation_cache()
    training.check_outputs(output=config.output, attention=config.attention)
    if config.attention is not None:
        plotting.require_matplotlib()
    loaded = pipelines.load_run(config.run, pipelines.Captioner, config.access)
    if config.attention is not None and not loaded.pipeline.config.attends:
        decoder = loaded.pipeline.config.decoder
        raise ValueError(f"attention={config.attention} needs a decoder that attends, not {decoder} of {config.run}")
    given = {name: getattr(config, name) for name in ("beams", "normalization", "coverage")}
    search = dataclasses.replace(loaded.pipeline.search, **{name: x for name, x in given.items() if x is not None})
    captioner = loaded.pipeline.with_search(search, config.max_length)
    paths = pipelines.image_paths(config.images)
    images = pipelines.read_images(paths, captioner.image_size, captioner.resize)
    inputs, placed = captioner.source(images), captioner.on(placement)
    with placement.ambient():
        if config.samples is None:
            found = [[caption] for caption in placed.captions(loaded.params, inputs)]
        else:
            options, key = decoding.SamplingOptions(temperature=config.temperature), jax.random.key(config.seed)
            found = placed.samples(loaded.params, inputs, config.samples, options, key=key)
    write(config, [paths[index] for index in images.kept], found)
    if config.attention is not None:
        draw(config, captioner, loaded.params, images, found[0][0])
    return found


def write(config: Config, paths: Sequence[Path], found: Sequence[Sequence[Caption]]) -> None:
    """Write one line per caption to the file or to standard output."""
    pairs = [(path, caption) for path, captions in zip(paths, found, strict=True) for caption in captions]
    if config.output is not None and config.output.suffix == ".jsonl":
        rows = ({"image": str(a), "caption": b.text, "log_probability": b.log_probability} for a, b in pairs)
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    else:
        lines = [f"{path}\t{caption.text}" for path, caption in pairs]
    if config.output is None:
        print("\n".join(lines))
        return
    write_output(config.output, "".join(f"{line}\n" for line in lines))
    print(f"written: {config.output}", file=sys.stderr)


def draw(config: Config, captioner: pipelines.Captioner, params: object, images: ImageFiles, caption: Caption) -> None:
    """Draw the attention of a caption over the first image."""
    first = captioner.source(images.select([0]))
    maps = captioner.attentions(params, first, [caption.tokens])
    words = [captioner.vocabulary.decode([token]) for token in caption.tokens.tolist()]
    assert config.attention is not None
    plotting.draw_attention_maps(images(np.array([0]))[0], words, maps[0], config.attention)


if __name__ == "__main__":
    training.run_cli(main, Config, __doc__, resumable=False)
