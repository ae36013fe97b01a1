"""Run folders of small untrained models, as experiments leave them."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments import captioning, language_model, translation
from jaxseq import data, training
from jaxseq.models import CaptionerConfig
from jaxseq.models.configs import AttentionTranslator, LanguageModelConfig
from jaxseq.pipelines import Captioner, Pipeline, TextGenerator, Translator
from tests.compilation import jitted


def save_run(folder: Path, config: Any, pipeline: Pipeline, *inputs: Any, steps: tuple[int, ...] = (1,)) -> Path:
    """A run folder with a checkpoint of each step; those of step n were drawn with key n."""
    init = jitted(pipeline.model.init)
    optimizer = training.make_optimizer(training.OptimizerConfig(), 6)
    with training.Run.open(folder, config, fingerprint="none") as run:
        pipeline.save(run)
        store = training.Checkpoints(run.checkpoints, provenance=run.provenance)
        for step in steps:
            params = init(jax.random.key(step), *inputs)["params"]
            store.save(step, training.create_state(params, optimizer, key=jax.random.key(0)))
        store.close()
    return folder


def language_run(folder: Path, core: str, **options: Any) -> Path:
    """A language model over three characters."""
    model = LanguageModelConfig(core=core, features=8)
    generator = TextGenerator(model, data.Characters("abc"), attention_lookback=7)
    inputs = generator.model.initial_carry((1,)), jnp.zeros((1, 1), jnp.int32)
    return save_run(folder, language_model.Config(model=model), generator, *inputs, **options)


def translation_run(folder: Path) -> Path:
    """A translator from three characters to two."""
    model = AttentionTranslator(features=8)
    translator = Translator(model, data.Characters("abc"), data.Characters("de"), max_length=9)
    tokens = jnp.zeros((1, 1), jnp.int32)
    return save_run(folder, translation.Config(model=model), translator, tokens, tokens)


def captioning_run(folder: Path) -> Path:
    """A captioner with three words."""
    model = CaptionerConfig(features=8, num_heads=2)
    vocabulary = data.fit_vocabulary("words", ["a b c"])
    captioner = Captioner(model, vocabulary, image_size=(16, 16), max_length=5)
    config = captioning.Config(model=model)
    return save_run(folder, config, captioner, captioner.blank(), jnp.zeros((1, 1), jnp.int32))
