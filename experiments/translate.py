"""Translate with a model that translation.py trained: texts from the command line, a file or standard input.

    python experiments/translate.py --run runs/dates --text "March 3, 2031" "Friday, May 2, 1930"
    python experiments/translate.py --run runs/mine --file new.txt --beams 4 --output new.out
    python experiments/translate.py --run runs/dates --text "May 2, 1930" --alignment where.png
    cat new.txt | python experiments/translate.py --run runs/mine

One text a line. It reads the newest checkpoint that verifies and locks nothing: a run can be used while it trains.
"""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxseq import analysis, data, training

sys.path.append(str(Path(__file__).resolve().parent))  # the other experiment, whatever this one is imported as
import translation


@dataclass(frozen=True)
class Config:
    """Which model, which texts; decoded as the run's own held-out pairs unless told otherwise."""

    run: Path
    """A run folder of translation.py."""
    text: tuple[str, ...] = ()
    file: Path | None = None
    """Texts, one a line, UTF-8 (.gz too); without text and file, standard input."""
    output: Path | None = None
    """Write the translations to this file, a line each, instead of showing them."""
    beams: int | None = None
    """1 is greedy."""
    normalization: Literal["none", "mean", "gnmt"] | None = None
    coverage: float | None = None
    max_length: int | None = None
    """Tokens of a translation at most; by default half as many again as the longest that was trained on."""
    alignment: Path | None = None
    """Draw where the first text was read as each token was written (PNG)."""


class Trained(NamedTuple):
    """A run's model, and the step that its parameters are of."""

    config: translation.Config
    task: translation.Task
    model: Any
    params: Any
    step: int


def main(config: Config) -> list[str]:
    """Load, translate, show; returns the translations."""
    if config.max_length is not None and config.max_length < 1:
        raise ValueError(f"max_length must be at least 1, not {config.max_length}")
    training.enable_compilation_cache()
    trained = load(config.run)
    asked = {name: getattr(config, name) for name in ("beams", "normalization", "coverage")}
    chosen = {name: value for name, value in asked.items() if value is not None}
    settings = dataclasses.replace(trained.config, **chosen)
    texts = read(config)
    translator = translation.Translator(settings, trained.model, trained.task)
    length = config.max_length or training.read_json(config.run / "lengths.json")["longest_answer"]
    found = translator(trained.params, texts, length)
    if config.output is not None:
        config.output.write_text("".join(f"{line}\n" for line in found), encoding="utf-8")
    else:
        print("\n".join(found))
    if config.alignment is not None:
        drawn = translation.alignments(trained.model, trained.params, trained.task, [(texts[0], found[0])])
        if not drawn:
            raise ValueError(f"{config.run}: a model of kind {trained.config.model} attends to nothing")
        analysis.draw_alignments(drawn, config.alignment)
    return found


def read(config: Config) -> list[str]:
    """The texts: given, of the file, or of standard input.

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


def load(folder: Path) -> Trained:
    """The model of a run folder, with the parameters of its newest checkpoint that verifies.

    Raises:
        TrainingError: no run folder, one of another experiment, or one that has no checkpoint (yet).
    """
    settings = training.read_json(folder / "config.json")
    if settings is None:
        raise training.RunFolderError(f"{folder} is no run folder: it has no config.json")
    try:
        config = training.from_json(translation.Config, settings)
        written = (training.read_json(folder / f"{side}_vocabulary.json") or "" for side in ("source", "target"))
        source, target = map(data.vocabulary_from_json, written)
    except (ValueError, TypeError) as error:
        raise training.RunFolderError(f"{folder} is no run folder of translation.py: {error}") from None
    if config.smoke:
        config = translation.smoke(config)
    model = translation.build(config, source.size, target.size)
    tokens = jnp.zeros((1, 1), jnp.int32)
    like = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)["params"]
    restored = training.Checkpoints(folder / "checkpoints").restore_parameters(like)
    if restored is None:
        raise training.RunFolderError(f"{folder} has no checkpoint yet")
    return Trained(config, translation.Task(None, source, target), model, restored.state, restored.step)


if __name__ == "__main__":
    training.command_line(main, Config, __doc__, resumes=False)
