"""Translate with a trained model: texts from the command line, a file or standard input.

    python experiments/translate.py --run runs/dates --text "March 3, 2031" "Friday, May 2, 1930"
    python experiments/translate.py --run runs/mine --file new.txt --beams 4 --output new.out
    python experiments/translate.py --run runs/dates --text "May 2, 1930" --alignment where.png
    cat new.txt | python experiments/translate.py --run runs/mine

One text per line, one translation per line; a blank line gives a blank line. For texts that contain line feeds, use
JSON lines: --file new.jsonl (the field "source"), --output new.out.jsonl. The run folder is one that translation.py
wrote. It is only read, and can be used while its run trains.
"""

import dataclasses
import gzip
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from jaxseq import data, distribution, pipelines, plotting, training
from jaxseq.files import write_output
from jaxseq.models.configs import RNNTranslator


@dataclass(frozen=True)
class Config:
    """The model and the texts; by default, decoding uses the settings saved with the run."""

    run: Path
    """A run folder of translation.py."""
    text: tuple[str, ...] = ()
    """Texts to translate."""
    file: Path | None = None
    """A UTF-8 file with one text per line, or a .jsonl file of objects with a field "source"; either may be .gz.
    Without --text and --file, texts are read from standard input."""
    output: Path | None = None
    """Write the translations to this file (.gz too) instead of printing them: one per line, or to a .jsonl file one
    object {"source": ..., "target": ...} per line."""
    beams: int | None = None
    """Number of beams; 1 is greedy decoding."""
    normalization: Literal["none", "mean", "gnmt"] | None = None
    """Divisor of a beam's log-probability: 1, its length, or (gnmt) ((5 + length) / 6)^0.6."""
    coverage: float | None = None
    """Strength of beam search's coverage penalty."""
    max_length: int | None = None
    """Maximum number of tokens of a translation; by default 1.5 times the longest training target."""
    alignment: Path | None = None
    """Draw the attention of the first translation over its source (PNG, SVG, PDF)."""
    mesh: str | None = None
    """The devices among which the texts of a batch are divided: data=-1 or data=4; one device if not given."""
    access: tyro.conf.OmitArgPrefixes[pipelines.RunAccess] = pipelines.RunAccess()

    def __post_init__(self) -> None:
        training.check_numbers(self)
        for name, least in {"beams": 1, "coverage": 0, "max_length": 1}.items():
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.alignment is not None:
            plotting.figure_format(self.alignment)


def main(config: Config) -> list[str]:
    """Load the model, translate, print; returns the translations."""
    training.check_outputs(output=config.output, alignment=config.alignment)
    if config.alignment is not None:
        plotting.require_matplotlib()
    placement = distribution.Placement.on(config.mesh)
    training.enable_compilation_cache()
    loaded = pipelines.load_run(config.run, pipelines.Translator, config.access)
    if config.alignment is not None and isinstance(loaded.pipeline.config, RNNTranslator):
        raise ValueError(
            f"alignment={config.alignment} needs a model that attends, not the RNNTranslator of {config.run}"
        )
    asked = {name: getattr(config, name) for name in ("beams", "normalization", "coverage")}
    given = {name: value for name, value in asked.items() if value is not None}
    search = dataclasses.replace(loaded.pipeline.search, **given)
    translator = loaded.pipeline.with_search(search, config.max_length)
    texts = read(config)
    with placement.ambient():
        found = translator.on(placement)(loaded.params, texts)
    write(config, texts, found)
    if config.alignment is not None:
        filled = [pair for pair in zip(texts, found, strict=True) if pair[0].strip()]
        if not filled:
            raise ValueError("alignment draws the first text that is not blank: there is none")
        plotting.draw_alignments(translator.alignments(loaded.params, filled[:1]), config.alignment)
    return found


def read(config: Config) -> list[str]:
    """Read the texts from the command line, the file, or standard input.

    Raises:
        ValueError: there is none.
    """
    texts = list(config.text)
    if config.file is not None:
        texts += data.read_texts(config.file)
    if config.file is None and not texts:
        texts += data.decode_lines(sys.stdin.buffer.read(), "standard input")
    if not texts:
        raise ValueError("there is no text to translate")
    return texts


def write(config: Config, texts: Sequence[str], found: Sequence[str]) -> None:
    """Write one line per text to the file or to standard output; a line end in a translation becomes a space."""
    packed = config.output is not None and config.output.suffix == ".gz"
    if config.output is not None and ".jsonl" in config.output.suffixes[-1 - packed :]:
        rows = ({"source": text, "target": line} for text, line in zip(texts, found, strict=True))
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    else:
        lines = [re.sub(r"\r?\n|\r$", " ", line) for line in found]
        changed = sum(line != text for line, text in zip(lines, found, strict=True))
        if changed:
            told = f"translations with a line end, written as a space: {changed} (--output FILE.jsonl keeps it)"
            print(told, file=sys.stderr)
    if config.output is not None:
        raw = "".join(f"{line}\n" for line in lines).encode()
        write_output(config.output, gzip.compress(raw) if packed else raw)
        print(f"written: {config.output}", file=sys.stderr)
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    training.run_cli(main, Config, __doc__, resumable=False)
