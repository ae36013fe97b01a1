r"""Generate text with a model that language_model.py trained: greedy, drawn or searched for, free or under constraints.

    python experiments/generate.py --run runs/mine --prompt "The " "A "                                # greedy
    python experiments/generate.py --run runs/mine --prompt "The " --temperature 0.8 --top-p 0.9 --samples 3
    python experiments/generate.py --run runs/mine --prompt "The " --temperature 0.8 --stream
    python experiments/generate.py --run runs/mine --prompt "The " --beams 4 --normalization gnmt --results 4
    python experiments/generate.py --run runs/mine --prompt "The " --beams 3 --max-length 8 --tree tree.png
    python experiments/generate.py --run runs/mine --beams 8 --regex "[A-Z][a-z ]{10,60}\."
    python experiments/generate.py --run runs/mine --beams 8 --require name --forbid "the " --json found.json

It reads the newest checkpoint that verifies (averaged parameters where the run keeps them), locks nothing and writes
nothing there: a run can be looked at while it trains.
"""

import codecs
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxseq import data, decoding, training
from jaxseq.decoding import Automaton, Hypotheses

sys.path.append(str(Path(__file__).resolve().parent))  # the other experiment, whatever this one is imported as
import language_model

SEARCH = ("beams", "normalization", "alpha", "results", "groups", "diversity", "tree")
FILTERS = ("temperature", "top_k", "top_p", "min_p", "typical_p")
SAMPLING = (*FILTERS, "samples", "seed")


@dataclass(frozen=True)
class Config:
    """Which model, from what, and how: greedy unless an option of beam search or of sampling is given."""

    run: Path
    """A run folder of language_model.py."""
    prompt: tuple[str, ...] = ("",)
    """The beginning of a document, which the text goes on from; several are decoded in one batch."""
    max_length: int = 200
    """Tokens at most, the end among them."""
    min_length: int = 0
    """Tokens at least, before the end."""
    beams: int | None = None
    """Search for the most probable text with so many beams."""
    normalization: Literal["none", "mean", "gnmt"] = "none"
    """What the log-probability of a beam is divided by: 1, its length, or (gnmt) ((5 + length) / 6)^alpha."""
    alpha: float = 0.6
    results: int = 1
    """How many beams are shown, best first."""
    groups: int = 1
    """Diverse beam search: groups share the beams, a token costs diversity for each beam before that has taken it."""
    diversity: float = 0.0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    samples: int | None = None
    """Texts drawn for each prompt; 1 unless given."""
    seed: int | None = None
    """Of the draws; 0 unless given."""
    forbid: tuple[str, ...] = ()
    """None of these occurs in what is generated, however tokens spell it; the text is then whole."""
    require: tuple[str, ...] = ()
    """All of these occur in what is generated; the text is then whole."""
    regex: str | None = None
    """Matches all that is generated; of bytes and bpe, tokens that cut a character beyond ASCII are left out."""
    no_repeat_ngrams: int | None = None
    """No so many tokens in a row occur twice in what is generated."""
    complete: bool = False
    """Only whole texts: they end within max_length."""
    stream: bool = False
    """Show the text as it comes: of one prompt, greedy or one sample."""
    tree: Path | None = None
    """Draw what the beam search of the first prompt looked at (PNG, SVG, PDF); for a small max_length."""
    json: Path | None = None
    """Write the results to this file as well."""


@dataclass(frozen=True)
class Result:
    """A text; its log-probability (nats) under the model, without constraints and filters, over all its tokens.

    The end token is one of them if it ``ended``. Minus infinity says that constraints left no token. Beams are compared
    by their ``score``.
    """

    prompt: str
    text: str
    log_probability: float
    score: float
    num_tokens: int
    ended: bool
    tokens: tuple[int, ...]


class Trained(NamedTuple):
    """A run's model. ``spelled`` is the UTF-8 of each token, ``step`` what the parameters are of."""

    config: language_model.Config
    vocabulary: data.Vocabulary
    spelled: list[bytes]
    model: Any
    params: Any
    step: int


def main(config: Config) -> list[Result]:
    """Load the model, read the prompts, decode, show; returns the results."""
    method = check(config)
    training.enable_compilation_cache()
    trained = load(config.run)
    vocabulary, end = trained.vocabulary, trained.vocabulary.separator
    prompts = [[end, *encoded(vocabulary, text, "prompt")] for text in config.prompt]
    constraints = make_constraints(config, trained)
    forward = Partial(trained.model.apply, {"params": trained.params})
    carry = trained.model.initial_carry((len(prompts),), language_model.reach(trained.config))
    begun = decoding.prefill(forward, carry, *decoding.padded(prompts), max_length=config.max_length)
    step = decoding.step_of(forward)
    common: dict[str, Any] = {"max_length": config.max_length, "end_token": end, "constraints": constraints}
    print(f"{config.run}: {trained.config.core} at step {trained.step}; {method}", flush=True)

    make = partial(streamed, spelled=trained.spelled) if config.stream else decoded
    results = read(config, vocabulary, jax.device_get(make(config, step, begun, common)))
    for result in results:
        fate = "ended" if result.ended else "not ended" if result.log_probability > -math.inf else "no token was left"
        score = f", score {result.score:.3f}" if config.beams is not None else ""
        print(f"--- {result.num_tokens} tokens, {fate}, log-probability {result.log_probability:.3f}{score}")
        if not config.stream:
            print(result.prompt + result.text, flush=True)
    if config.json is not None:
        rows = training.to_json({"config": config, "step": trained.step, "method": method, "results": results})
        config.json.write_text(json.dumps(rows, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    if config.tree is not None:
        names = [repr(text.decode(errors="replace")) if text else "end" for text in trained.spelled]
        first = jax.tree.map(lambda leaf: leaf[:1], begun)
        tree = decoding.search_tree(step, *first, **search_options(config), **common)
        print(f"--- the search of {config.prompt[0]!r}\n{tree.text(names.__getitem__)}", flush=True)
        print(f"--- drawn: {tree.draw(config.tree, names.__getitem__)}")
    return results


def check(config: Config) -> str:
    """The method that the options ask for, in words; raises ValueError for those that do not go together."""
    search, sampling = told(given(config, SEARCH)), told(given(config, SAMPLING))
    if search and sampling:
        raise ValueError(f"{search} is of a beam search, {sampling} of sampling: give one or the other")
    if search and config.beams is None:
        raise ValueError(f"{search} is of a beam search: give beams, too")
    if given(config, ("alpha",)) and config.normalization != "gnmt":
        raise ValueError(f"alpha={config.alpha} is of normalization gnmt, not of {config.normalization}")
    if config.tree is not None and config.groups > 1:
        raise ValueError(f"tree={config.tree} is of a search without groups, not of groups={config.groups}")
    if config.stream and (search or len(config.prompt) != 1 or config.samples not in (None, 1)):
        asked = search or f"{len(config.prompt)} prompts, samples={config.samples}"
        raise ValueError(f"stream shows one text of one prompt, made without beams; not {asked}")
    if not 0 <= config.min_length <= config.max_length - config.complete:
        raise ValueError(f"min_length={config.min_length} does not go into max_length={config.max_length}")
    if "" in config.forbid + config.require:
        raise ValueError("forbid and require take texts of at least a character, not ''")
    return f"beam search, {search}" if search else f"sampling, {sampling}" if sampling else "greedy"


def load(folder: Path) -> Trained:
    """The model of a run folder, with the parameters of its newest checkpoint that verifies.

    Raises:
        TrainingError: no run folder, one of another experiment, or one that has no checkpoint (yet).
    """
    settings, written = (training.read_json(folder / name) for name in ("config.json", "vocabulary.json"))
    if settings is None:
        raise training.RunFolderError(f"{folder} is no run folder: it has no config.json")
    try:
        config = training.from_json(language_model.Config, settings)
        vocabulary = data.vocabulary_from_json(written or "")
    except (ValueError, TypeError) as error:
        raise training.RunFolderError(f"{folder} is no run folder of language_model.py: {error}") from None
    model = language_model.build(config, vocabulary.size)
    inputs = model.initial_carry((1,)), jnp.zeros((1, 1), jnp.int32)
    like = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    restored = training.Checkpoints(folder / "checkpoints").restore_parameters(like)
    if restored is None:
        raise training.RunFolderError(f"{folder} has no checkpoint yet")
    return Trained(config, vocabulary, spellings(vocabulary), model, restored.state, restored.step)


def encoded(vocabulary: data.Vocabulary, text: str, option: str) -> list[int]:
    """The token ids of a text; raises ValueError that names the characters which the vocabulary does not have."""
    ids = vocabulary.encode(text).tolist()
    if isinstance(vocabulary, data.Characters) and 1 in ids:
        unknown = sorted({character for character, token in zip(text, ids, strict=True) if token == 1})
        raise ValueError(f"{option} {text!r}: the model knows no {', '.join(map(repr, unknown))}")
    return ids


def spellings(vocabulary: data.Vocabulary) -> list[bytes]:
    """The UTF-8 that each token spells; nothing, for the separator."""
    if isinstance(vocabulary, data.Bytes):
        return [bytes([byte]) for byte in range(256)] + [b""]
    if not isinstance(vocabulary, data.BPE):
        return [vocabulary.decode([token]).encode() for token in range(vocabulary.size)]
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves in a bpe's tokens;
    hidden = sorted({*range(256)} - {*shown})  # these stand there as the characters from 256 on
    byte_of = dict(zip(map(chr, [*shown, *range(256, 256 + len(hidden))]), shown + hidden, strict=True))
    ids = json.loads(vocabulary.model)["model"]["vocab"]
    return [bytes(map(byte_of.__getitem__, entry)) for entry in sorted(ids, key=ids.__getitem__)] + [b""]


def make_constraints(config: Config, trained: Trained) -> list[decoding.Constraint]:
    """What the options rule out; automata as one, so that none leads into another's dead end."""
    spelled, end = trained.spelled, trained.vocabulary.separator
    automata: list[Automaton] = []
    for name, build in (("require", occurring), ("forbid", absent)):
        for text in getattr(config, name):
            encoded(trained.vocabulary, text, name)
            automata.append(build(text, spelled, end))
    if config.regex is not None:
        texts = [text.decode(errors="replace") for text in spelled]
        whole = [None if "\ufffd" in text else text for text in texts]
        automata.append(Automaton.from_regex(config.regex, whole, end_token=end))
    constraints: list[decoding.Constraint] = []
    if config.min_length and automata:
        automata.append(Automaton.from_regex(f"x{{{config.min_length},}}", ["x"] * len(spelled), end_token=end))
    elif config.min_length:
        constraints.append(decoding.MinLength(config.min_length, end))
    if automata:
        constraints.append(reduce(Automaton.__and__, automata))
        try:
            constraints[0].check(len(spelled), config.max_length)
        except ValueError as error:
            asked = given(config, ("require", "forbid", "regex", "min_length"))
            raise ValueError(f"{told(asked)}: {error}") from None
    if config.complete:
        constraints.append(decoding.MaxLength(None, end))
    if config.no_repeat_ngrams is not None:
        constraints.append(decoding.NoRepeatedNgrams(config.no_repeat_ngrams))
    return constraints


def occurring(text: str, spelled: list[bytes], end: int) -> Automaton:
    """The sequences that spell a text somewhere: over bytes, so that every way to spell it counts."""
    pattern = "".join(f"\\x{byte:02x}" for byte in text.encode())
    letters = [token.decode("latin-1") for token in spelled]
    return Automaton.from_regex(rf"[\x00-\xff]*{pattern}[\x00-\xff]*", letters, end_token=end)


def absent(text: str, spelled: list[bytes], end: int) -> Automaton:
    """All other sequences."""
    found = occurring(text, spelled, end)
    table, others = np.asarray(found.table)[:, found.classes], ~np.asarray(found.accepting)
    return Automaton.from_transitions(table, others, vocab_size=len(spelled), end_token=end)


def decoded(config: Config, step: Any, begun: decoding.Prompted, common: dict[str, Any]) -> Hypotheses:
    """By the method that was asked for: the beams or samples of each prompt, or its one text."""
    if config.beams is not None:
        return decoding.beam_search(step, *begun, **search_options(config), **common)
    if given(config, SAMPLING):
        key, samples = jax.random.key(config.seed or 0), 1 if config.samples is None else config.samples
        made = decoding.sample(step, *begun, key=key, num_samples=samples, **given(config, FILTERS), **common)
    else:
        made = jax.tree.map(lambda x: x[:, None], decoding.greedy(step, *begun, **common))
    return Hypotheses(made.tokens, made.lengths, made.log_probabilities, made.log_probabilities)


def streamed(
    config: Config, step: Any, begun: decoding.Prompted, common: dict[str, Any], spelled: list[bytes]
) -> Hypotheses:
    """The same text, shown as it is made: a character when all of its bytes are there."""
    options = common
    if given(config, SAMPLING):  # the key of the first sample of the first prompt
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed or 0), 0), 0)[None]
        options = common | given(config, FILTERS) | {"key": key}
    characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
    tokens: list[int] = []
    print(config.prompt[0], end="", flush=True)
    for token in decoding.stream(step, *begun, **options):
        tokens.append(int(token[0]))
        print(characters.decode(spelled[tokens[-1]]), end="", flush=True)
    print(characters.decode(b"", final=True), flush=True)
    row, lengths = jnp.array([[tokens]], jnp.int32), jnp.array([[len(tokens)]], jnp.int32)
    scores = decoding.score(step, *begun, row, lengths)
    early = tokens[-1] == common["end_token"] and len(tokens) <= config.min_length
    if early or any(isinstance(rule, Automaton) and not rule.accepts(tokens) for rule in common["constraints"]):
        lengths, scores = lengths - 1, jnp.full_like(scores, -jnp.inf)  # that was no end: no token was left
    return Hypotheses(row, lengths, scores, scores)


def read(config: Config, vocabulary: data.Vocabulary, found: Hypotheses) -> list[Result]:
    """Prompt after prompt, best first; of a search's results, those that there are."""
    results = []
    for prompt, *rows in zip(config.prompt, *found, strict=True):
        for rank, (tokens, length, log_probability, score) in enumerate(zip(*rows, strict=True)):
            if length or not rank or config.beams is None:
                made = tuple(tokens[:length].tolist())
                numbers = (float(log_probability), float(score), len(made), vocabulary.separator in made)
                results.append(Result(prompt, vocabulary.decode(made), *numbers, made))
    return results


def search_options(config: Config) -> dict[str, Any]:
    """What beam search is asked."""
    normalization = decoding.GNMT(config.alpha) if config.normalization == "gnmt" else config.normalization
    sizes = {"num_beams": config.beams, "num_results": config.results, "num_groups": config.groups}
    return sizes | {"normalization": normalization, "diversity": config.diversity}


def given(config: Config, names: Sequence[str]) -> dict[str, Any]:
    """Those of the options that are not left as they are by default."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    return {name: getattr(config, name) for name in names if getattr(config, name) != defaults[name]}


def told(options: dict[str, Any]) -> str:
    """Options and their values, for people."""
    return ", ".join(f"{name}={value}" for name, value in options.items())


if __name__ == "__main__":
    training.command_line(main, Config, __doc__, resumes=False)
