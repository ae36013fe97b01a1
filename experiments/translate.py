"""Translate with a trained model: texts from the command line, a file or standard input.

    python experiments/translate.py --run runs/dates --text "March 3, 2031" "Friday, May 2, 1930"
    python experiments/translate.py --run runs/mine --file new.txt --beams 4 --output new.out
    python experiments/translate.py --run runs/dates --text "May 2, 1930" --alignment where.png
    cat new.txt | python experiments/translate.py --run runs/mine

One text per line. The run folder is one that translation.py wrote. It is only read, and can be used while its run
trains.
"""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxseq import data, pipelines, plotting, training


@dataclass(frozen=True)
class Config:
    """The model and the texts; by default, decoding uses the settings saved with the run."""

    run: Path
    """A run folder of translation.py."""
    text: tuple[str, ...] = ()
    file: Path | None = None
    """Texts, one per line, UTF-8 (.gz too); without text and file, standard input."""
    output: Path | None = None
    """Write the translations to this file, one per line, instead of printing them."""
    beams: int | None = None
    """Number of beams; 1 is greedy decoding."""
    normalization: Literal["none", "mean", "gnmt"] | None = None
    """Divisor of a beam's log-probability: 1, its length, or (gnmt) ((5 + length) / 6)^0.6."""
    coverage: float | None = None
    """Strength of beam search's coverage penalty."""
    max_length: int | None = None
    """Maximum number of tokens of a translation; by default 1.5 times the longest training target."""
    alignment: Path | None = None
    """Draw the attention of the first translation over its source (PNG)."""


def main(config: Config) -> list[str]:
    """Load the model, translate, print; returns the translations."""
    if config.max_length is not None and config.max_length < 1:
        raise ValueError(f"max_length must be at least 1, not {config.max_length}")
    training.enable_compilation_cache()
    loaded = pipelines.load_run(config.run, pipelines.Translator)
    asked = {name: getattr(config, name) for name in ("beams", "normalization", "coverage")}
    given = {name: value for name, value in asked.items() if value is not None}
    search = dataclasses.replace(loaded.pipeline.search, **given)
    translator = loaded.pipeline.with_search(search, config.max_length)
    texts = read(config)
    found = translator(loaded.params, texts)
    if config.output is not None:
        config.output.write_text("".join(f"{line}\n" for line in found), encoding="utf-8")
    else:
        print("\n".join(found))
    if config.alignment is not None:
        alignments = translator.alignments(loaded.params, [(texts[0], found[0])])
        if not alignments:
            raise ValueError(f"{config.run}: a model of kind {type(translator.config).__name__} attends to nothing")
        plotting.draw_alignments(alignments, config.alignment)
    return found


def read(config: Config) -> list[str]:
    """Read the texts from the command line, the file, or standard input.

    Raises:
        ValueError: there is none, or one is empty.
    """
    texts = list(config.text)
    if config.file is not None:
        texts += data.read_text(config.file).splitlines()
    if config.file is None and not texts:
        texts = sys.stdin.read().splitlines()
    for number, text in enumerate(texts, 1):
        if not text:
            raise ValueError(f"text {number} is empty")
    if not texts:
        raise ValueError("there is no text to translate")
    return texts


if __name__ == "__main__":
    training.run_cli(main, Config, __doc__, resumable=False)
