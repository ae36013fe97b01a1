r"""Generate text with a trained language model: greedy, sampled or by beam search, free or under constraints.

    python experiments/generate.py --run runs/mine --prompt "The " "A "                                # greedy
    python experiments/generate.py --run runs/mine --prompt "The " --temperature 0.8 --top-p 0.9 --samples 3
    python experiments/generate.py --run runs/mine --prompt "The " --temperature 0.8 --stream
    python experiments/generate.py --run runs/mine --prompt "The " --beams 4 --normalization gnmt --results 4
    python experiments/generate.py --run runs/mine --prompt "The " --beams 3 --max-length 8 --tree tree.png
    python experiments/generate.py --run runs/mine --prompt "The " --seed 1 --stop $'\n\n' "." --repetition-penalty 1.2
    python experiments/generate.py --run runs/mine --beams 8 --regex "[A-Z][a-z ]{10,60}\."
    python experiments/generate.py --run runs/mine --beams 8 --require name --forbid "the " --json found.json

The run folder is one that language_model.py wrote. It is only read, and can be used while its run trains.
"""

import codecs
import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro

from jaxseq import decoding, distribution, pipelines, plotting, training
from jaxseq.decoding import Automaton, Hypotheses
from jaxseq.files import write_output
from jaxseq.ops.keys import fold_in_each, threefry_keys

SEARCH = ("beams", "normalization", "alpha", "results", "groups", "diversity", "tree")
FILTERS = ("temperature", "top_k", "top_p", "min_p", "typical_p")
SAMPLING = (*FILTERS, "samples", "seed")


@dataclass(frozen=True)
class Config:
    """The model, the prompts, and the method: greedy unless an option of beam search or of sampling is given."""

    run: Path
    """A run folder of language_model.py."""
    prompt: tuple[str, ...] = ("",)
    """Prompts: beginnings of documents to continue; all are decoded in one batch."""
    max_length: int = 200
    """Maximum number of generated tokens, including the end token."""
    min_length: int = 0
    """Minimum number of tokens before the end token."""
    beams: int | None = None
    """Use beam search with this number of beams."""
    normalization: Literal["none", "mean", "gnmt"] = "none"
    """Divisor of a beam's log-probability: 1, its length, or (gnmt) ((5 + length) / 6)^alpha."""
    alpha: float = 0.6
    """The exponent of gnmt."""
    results: int = 1
    """Number of beams to print, best first."""
    groups: int = 1
    """Diverse beam search: the beams are divided into groups. A token is penalised by diversity for each beam of an
    earlier group that chose it."""
    diversity: float = 0.0
    """The penalty of groups, in nats of log-probability."""
    temperature: float | None = None
    """Sample, with logits divided by this number; without it, sampling uses 1."""
    top_k: int | None = None
    """Sample from the k most probable tokens."""
    top_p: float | None = None
    """Sample from the most probable tokens that together have this probability."""
    min_p: float | None = None
    """Sample from tokens with at least this fraction of the largest probability."""
    typical_p: float | None = None
    """Sample from the tokens nearest to the entropy that together have this probability (locally typical sampling)."""
    samples: int | None = None
    """Number of texts to sample for each prompt; default 1."""
    seed: int | None = None
    """Random seed of the samples; default 0."""
    forbid: tuple[str, ...] = ()
    """Strings that must not occur in the text, in any tokenization; the text then ends within max_length."""
    require: tuple[str, ...] = ()
    """Strings that must all occur in the text, in any tokenization; the text then ends within max_length."""
    regex: str | None = None
    """Regular expression for the whole text. With bytes and bpe, tokens that split a character are excluded."""
    no_repeat_ngrams: int | None = None
    """Size of the n-grams of tokens that must not occur twice in the text."""
    repetition_penalty: float = 1.0
    """Divides the positive logits of tokens that the prompt or the text has, and multiplies negative ones."""
    stop: tuple[str, ...] = ()
    """Strings that end the text, in any tokenization; the text is cut before the first of them."""
    complete: bool = False
    """Generate only complete texts, which end within max_length."""
    stream: bool = False
    """Print the text while it is generated (one prompt, greedy or one sample)."""
    tree: Path | None = None
    """Draw the search tree of the first prompt (PNG, SVG, PDF); for a small max_length."""
    json: Path | None = None
    """Also write the results to this file."""
    mesh: str | None = None
    """The devices among which the prompts, or the samples, are divided: data=-1 or data=4; one device if not given."""
    access: tyro.conf.OmitArgPrefixes[pipelines.RunAccess] = pipelines.RunAccess()

    def __post_init__(self) -> None:
        training.check_numbers(self)
        method_of(self)
        for name, least in {"max_length": 1, "samples": 1, "no_repeat_ngrams": 1, "alpha": 0}.items():
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not 0 <= self.min_length <= self.max_length - self.complete:
            raise ValueError(f"min_length={self.min_length} does not fit in max_length={self.max_length}")
        if not self.repetition_penalty > 0:
            raise ValueError(f"repetition_penalty must be above 0, not {self.repetition_penalty}")
        if "" in self.forbid + self.require + self.stop:
            raise ValueError("forbid, require and stop take texts of at least a character, not ''")
        if not self.prompt:
            raise ValueError("there are no prompts: give one at least, which may be empty")
        if self.tree is not None:
            plotting.figure_format(self.tree)
        if self.beams is not None:
            beam_options(self)
        sampling_options(self)


@dataclass(frozen=True)
class Result:
    """A generated text.

    ``log_probability`` (nats) is the model's own, without constraints and filters. It covers all tokens, including an
    end token if the text ``ended`` and tokens that were cut at a stop string; it is minus infinity if constraints ruled
    out every token. Beams are compared by ``score``.
    """

    prompt: str
    text: str
    log_probability: float
    score: float
    num_tokens: int
    ended: bool
    tokens: tuple[int, ...]


def main(config: Config) -> list[Result]:
    """Load the model, read the prompts, generate, print; returns the results."""
    if config.tree is not None:
        plotting.require_matplotlib()
    placement = distribution.Placement.on(config.mesh)
    training.check_outputs(tree=config.tree, json=config.json)
    training.enable_compilation_cache()
    loaded = pipelines.load_run(config.run, pipelines.TextGenerator, config.access)
    with placement.ambient():
        return generate(config, loaded.pipeline.on(placement), placement.replicate(loaded.params), loaded.step)


def generate(config: Config, generator: pipelines.TextGenerator, params: Any, step_number: int) -> list[Result]:
    """Read the prompts, generate, print; returns the results."""
    method = method_of(config)
    try:
        prompted = generator.prefill(params, prompt_rows(config), config.max_length)
    except ValueError as error:
        raise ValueError(f"prompt: {error}") from None
    step, end = decoding.step_of(generator.forward(params)), generator.vocabulary.separator
    constraints = make_constraints(config, generator)
    common: dict[str, Any] = {"max_length": config.max_length, "end_token": end, "constraints": constraints}
    print(f"{config.run}: {generator.config.core} at step {step_number}; {method}", flush=True)

    check_memory(config, generator, prompted)
    make = partial(stream, token_bytes=generator.token_bytes) if config.stream else decode
    results = read_results(config, generator, distribution.whole_arrays(make(config, step, prompted, common)))
    for result in results:
        stopped = result.text != generator.vocabulary.decode(result.tokens)
        fate = "ended" if result.ended else "stopped" if stopped else "not ended"
        fate = fate if result.log_probability > -math.inf else "no token was left"
        score = f", score {result.score:.3f}" if config.beams is not None else ""
        print(f"--- {result.num_tokens} tokens, {fate}, log-probability {result.log_probability:.3f}{score}")
        if not config.stream:
            print(result.prompt + result.text, flush=True)
    if config.json is not None:
        rows = training.to_json({"config": config, "step": step_number, "method": method, "results": results})
        write_output(config.json, json.dumps(rows, ensure_ascii=False, indent=2) + "\n")
    if config.tree is not None:
        names = [repr(text.decode(errors="replace")) if text else "end" for text in generator.token_bytes]
        first = jax.tree.map(lambda leaf: leaf[:1], prompted)
        tree = decoding.search_tree(step, *first, options=beam_options(config), **common)
        print(f"--- the search of {config.prompt[0]!r}\n{tree.text(names.__getitem__)}", flush=True)
        print(f"--- drawn: {plotting.draw_search_tree(tree.nodes, config.tree, names.__getitem__)}")
    return results


def method_of(config: Config) -> str:
    """Describe the selected method in words; raises ValueError for options that exclude each other."""
    search, sampling = in_words(given(config, SEARCH)), in_words(given(config, SAMPLING))
    if search and sampling:
        raise ValueError(f"{search} belongs to beam search, {sampling} to sampling: give one or the other")
    if search and config.beams is None:
        raise ValueError(f"{search} belongs to beam search: give beams, too")
    if given(config, ("alpha",)) and config.normalization != "gnmt":
        raise ValueError(f"alpha={config.alpha} belongs to normalization gnmt, not to {config.normalization}")
    if config.tree is not None and config.groups > 1:
        raise ValueError(f"tree={config.tree} draws a search without groups, not with groups={config.groups}")
    if config.stream and (search or len(config.prompt) != 1 or config.samples not in (None, 1)):
        asked = search or f"{len(config.prompt)} prompts, samples={config.samples}"
        raise ValueError(f"stream prints one text of one prompt, made without beams; not {asked}")
    return f"beam search, {search}" if search else f"sampling, {sampling}" if sampling else "greedy"


def check_memory(config: Config, generator: pipelines.TextGenerator, prompted: decoding.Prefilled) -> None:
    """Refuse more beams or samples than the memory holds."""
    count, name = (config.samples or 1, "samples") if config.beams is None else (config.beams, "beams")
    row = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), prompted.carry)
    sizes = {"vocab_size": generator.vocabulary.size, "max_length": config.max_length}
    pipelines.check_decoding_memory(row, count * len(config.prompt), **sizes, name=name)


def prompt_rows(config: Config) -> list[str]:
    """The prompt of each row of the batch. On a mesh each sample is a row, so that the devices divide the samples."""
    copies = 1 if config.mesh is None else config.samples or 1
    return [text for text in config.prompt for _ in range(copies)]


def make_constraints(config: Config, generator: pipelines.TextGenerator) -> list[decoding.Rule]:
    """Make the constraints of the options; automata are intersected, so that their combination has no dead end."""
    automata: list[Automaton] = []
    for name, build in (("require", generator.containing), ("forbid", generator.not_containing)):
        for text in getattr(config, name):
            try:
                generator.encode(text)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            automata.append(build(text))
    if config.regex is not None:
        automata.append(generator.matching(config.regex))
    constraints: list[decoding.Rule] = []
    if config.min_length and automata:
        automata.append(generator.at_least(config.min_length))
    elif config.min_length:
        constraints.append(decoding.MinLength(config.min_length, generator.vocabulary.separator))
    if automata:
        constraints.append(reduce(Automaton.__and__, automata))
        try:
            constraints[0].check(generator.vocabulary.size, config.max_length)
        except ValueError as error:
            asked = given(config, ("require", "forbid", "regex", "min_length"))
            raise ValueError(f"{in_words(asked)}: {error}") from None
    if config.complete:
        constraints.append(decoding.MaxLength(None, generator.vocabulary.separator))
    if config.no_repeat_ngrams is not None:
        constraints.append(decoding.NoRepeatedNgrams(config.no_repeat_ngrams))
    if config.repetition_penalty != 1:
        prompts, lengths = decoding.pad_prompts([[0, *generator.encode(text)] for text in prompt_rows(config)])
        constraints.append(decoding.RepetitionPenalty(config.repetition_penalty, prompts[:, 1:], lengths - 1))
    if config.stop:
        constraints.append(generator.stopping_at(config.stop))
    return constraints


def decode(config: Config, step: Any, prompted: decoding.Prefilled, common: dict[str, Any]) -> Hypotheses:
    """Return the beams or samples of each prompt, or its greedy text."""
    if config.beams is not None:
        return decoding.beam_search(step, *prompted, beam_options(config), **common)
    if given(config, SAMPLING):
        key, prompts, samples = jax.random.key(config.seed or 0), len(config.prompt), config.samples or 1
        draw = partial(decoding.sample, step, *prompted, sampling_options(config), **common)
        if config.mesh is None:
            made = draw(key=key, num_samples=samples)
        else:  # a row for each sample (prompt_rows), with the key that num_samples gives it
            keys = fold_in_each(threefry_keys(fold_in_each(key, prompts)), samples)
            made = draw(key=keys.reshape(-1))._replace(carry=())
            made = jax.tree.map(lambda x: x.reshape(prompts, samples, *x.shape[1:]), made)
    else:
        made = jax.tree.map(lambda x: x[:, None], decoding.greedy(step, *prompted, **common))
    return Hypotheses(made.tokens, made.lengths, made.log_probabilities, made.log_probabilities)


def stream(
    config: Config, step: Any, prompted: decoding.Prefilled, common: dict[str, Any], token_bytes: list[bytes]
) -> Hypotheses:
    """Generate the same text and print each character as soon as all of its bytes are generated."""
    options: dict[str, Any] = {}
    if given(config, SAMPLING):  # the key of the first sample of the first prompt
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed or 0), 0), 0)[None]
        options = {"options": sampling_options(config), "key": key}
    characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
    tokens: list[int] = []
    text, shown = "", 0
    print(config.prompt[0], end="", flush=True)
    for token in decoding.stream(step, *prompted, **options, **common):
        tokens.append(int(token[0]))
        text += characters.decode(token_bytes[tokens[-1]])
        held = max([n for string in config.stop for n in range(len(string)) if text.endswith(string[:n])], default=0)
        ready = max(shown, min(len(pipelines.cut_at(text, config.stop)), len(text) - held))
        print(text[shown:ready], end="", flush=True)
        shown = ready
    text += characters.decode(b"", final=True)
    whole = pipelines.cut_at(text, config.stop)
    print(whole[shown:], flush=True)
    row, lengths = jnp.array([[tokens]], jnp.int32), jnp.array([[len(tokens)]], jnp.int32)
    scores = decoding.score(step, *prompted, row, lengths)
    early = tokens[-1] == common["end_token"] and len(tokens) <= config.min_length
    stuck = any(isinstance(rule, Automaton) and not rule.accepts(tokens) for rule in common["constraints"])
    if early or (stuck and whole == text):
        lengths, scores = lengths - 1, jnp.full_like(scores, -jnp.inf)  # constraints left no token
    return Hypotheses(row, lengths, scores, scores)


def read_results(config: Config, generator: pipelines.TextGenerator, found: Hypotheses) -> list[Result]:
    """Return the results of each prompt, best first; beam search may return fewer than requested."""
    results, vocabulary = [], generator.vocabulary
    for prompt, *rows in zip(config.prompt, *found[:4], strict=True):
        for rank, (tokens, length, log_probability, score) in enumerate(zip(*rows, strict=True)):
            if length or not rank or config.beams is None:
                made = tuple(tokens[:length].tolist())
                numbers = (float(log_probability), float(score), len(made), vocabulary.separator in made)
                results.append(Result(prompt, pipelines.cut_at(vocabulary.decode(made), config.stop), *numbers, made))
    return results


def beam_options(config: Config) -> decoding.BeamOptions:
    """The options of beam search."""
    normalization = decoding.GNMT(config.alpha) if config.normalization == "gnmt" else config.normalization
    groups: dict[str, Any] = {"num_groups": config.groups, "diversity": config.diversity}
    assert config.beams is not None
    return decoding.BeamOptions(config.beams, config.results, normalization, **groups)


def sampling_options(config: Config) -> decoding.SamplingOptions:
    """The temperature and the filters."""
    return decoding.SamplingOptions(**{name: getattr(config, name) for name in FILTERS})


def given(config: Config, names: Sequence[str]) -> dict[str, Any]:
    """Return the options that differ from their defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    return {name: getattr(config, name) for name in names if getattr(config, name) != defaults[name]}


def in_words(options: dict[str, Any]) -> str:
    """Options and their values, for messages."""
    return ", ".join(f"{name}={value}" for name, value in options.items())


if __name__ == "__main__":
    training.run_cli(main, Config, __doc__, resumable=False)
