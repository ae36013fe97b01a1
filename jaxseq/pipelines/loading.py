"""A trained model of any run folder, with all that belongs to it."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn

from jaxseq import training
from jaxseq.files import JSON
from jaxseq.pipelines.captioner import Captioner
from jaxseq.pipelines.detector import Detector
from jaxseq.pipelines.saved import Pipeline, load_run
from jaxseq.pipelines.text_generator import TextGenerator
from jaxseq.pipelines.translator import Translator
from jaxseq.pipelines.user_cores import RunAccess
from jaxseq.training.checkpoint_folder import StepChoice
from jaxseq.typing import PyTree

PIPELINES: tuple[type[Pipeline], ...] = (TextGenerator, Translator, Captioner, Detector)
"""What experiments train; a run folder holds the file of one of them."""


class Trained(NamedTuple):
    """A trained model.

    ``pipeline`` reads and writes texts or images with ``params`` (``TextGenerator``, ``Translator``, ``Captioner``,
    ``Detector``). ``vocabulary`` is a ``data.Vocabulary``, a translator's pair of them, or a detector's class names.
    ``config`` is the run's ``config.json``, and ``step`` the training step of the parameters.
    """

    model: nn.Module
    params: PyTree
    vocabulary: Any
    config: dict[str, JSON]
    step: int
    pipeline: Any


def load(
    run: str | os.PathLike[str],
    *,
    step: StepChoice = "latest",
    averaged: bool = True,
    core: Sequence[str] = (),
    trust: bool = False,
    accept_changes: bool = False,
) -> Trained:
    """Load the trained model of a run folder, of any experiment that trains one.

    Nothing is locked or written, so that a run can be used while it trains. Every file is verified, and nothing of the
    folder is executed: a core in a file is imported only if it is named or trusted.

    Example::

        trained = jaxseq.load("runs/demo")
        carry = trained.pipeline.initial_carry((1,))
        carry, logits = trained.model.apply({"params": trained.params}, carry, tokens)

    Args:
        run: the run folder.
        step: ``"latest"``, the newest valid checkpoint; ``"best"``, that of the best ``train.best_metric``; or a step
            whose checkpoint there is.
        averaged: take the moving average of the parameters, if the run keeps one.
        core: FILE.py:CLASS of each core of the run that is in a file, whose code is then run.
        trust: run the code of the files that the run folder names.
        accept_changes: use files that differ from those that the checkpoint was written with, with a warning.

    Raises:
        RunFolderError: not a run folder, one of an experiment that keeps no model, one without a checkpoint, one whose
            files were changed, or one with a core in a file that is not permitted.
        CheckpointError: no checkpoint is valid, there is none of this step, or it belongs to another model.
    """
    if isinstance(core, str):
        raise TypeError(f"core must be a sequence of texts, not the text {core!r}")
    saved = training.read_run(run, accept_changes=accept_changes)
    kinds = [kind for kind in PIPELINES if (saved.path / kind.file).exists()]
    if len(kinds) != 1:
        files = ", ".join(kind.file for kind in PIPELINES)
        found = "none" if not kinds else "several"
        raise training.RunFolderError(
            f"{saved.path} holds no trained model of an experiment: of {files} it has {found}"
        )
    loaded = load_run(run, kinds[0], RunAccess(step, averaged, tuple(core), trust, accept_changes))
    pipeline: Any = loaded.pipeline
    return Trained(pipeline.model, loaded.params, pipeline.vocabulary, saved.config, loaded.step, pipeline)
