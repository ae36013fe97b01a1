"""Tokens per second of greedy decoding, sampling and beam search, and the cost of a step as sequences grow.

python benchmarks/decoding.py                  # about twenty minutes on 2 CPU cores
python benchmarks/decoding.py --parts small    # one part; the rows of other cases are kept
python benchmarks/decoding.py --table          # print the measured rows as the tables of the documents
python benchmarks/decoding.py --quick          # one small model, few repeats, writes nothing

Every case is compared with a plain Python loop over a jitted step (token choice by eager ops, and a check after each
token whether all rows have ended), with an optimised Python loop (step and choice in one jitted function that donates
its carry, no check), and, for GPT-2-shaped models where torch and transformers are installed, with `generate` of a
GPT-2 of the same layers, width, heads and vocabulary. All weights are random, and there is no end token, so that all
generate the same number of tokens. The results of jaxseq and of the loops are scored before they are timed.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import decoding_peers as peers
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from decoding_peers import METHODS, Decoder
from harness import RESULTS, Candidate, Prepared, Row, device_name, judged, measure, parse_arguments
from jax.tree_util import Partial

from jaxseq import decoding
from jaxseq.cores import CORES, Core, Pointwise, Positions, Stacked, block
from jaxseq.layers import Embedding
from jaxseq.models import LanguageModel


@dataclass(frozen=True)
class Shape:
    """A model: its core's name, layers, width, vocabulary; a Transformer has a head for every 64 features."""

    core: str
    layers: int
    width: int
    vocab_size: int


SMALL = {"lstm": Shape("lstm", 2, 256, 1024), "transformer": Shape("attention", 4, 256, 1024)}
GPT2 = {"gpt2, 124M": Shape("attention", 12, 768, 50257)}
MODELS = {"small": SMALL, "gpt2": GPT2}
PARTS = (*MODELS, "steps")
LENGTH = 128


def build(shape: Shape, length: int, dtype: Any) -> LanguageModel:
    """The model; a Transformer is GPT-2's (learned positions, pre-norm blocks, tied head)."""
    V, F, types = shape.vocab_size, shape.width, {"dtype": dtype, "param_dtype": dtype}
    make: Any = CORES[shape.core]
    if shape.core != "attention":
        cores = tuple(make(features=F, **types) for _ in range(shape.layers))
        return LanguageModel(Embedding(V, F, **types), Stacked(cores), head=nn.Dense(V, **types))
    attention = partial(make, features=F, positions="none", **types)
    blocks: list[Core] = [Positions(F, kind="learned", max_length=length, **types)]
    blocks += [block(attention(), feed_forward=4 * F, **types) for _ in range(shape.layers)]
    blocks.append(Pointwise(nn.LayerNorm(**types), F))
    return LanguageModel(Embedding(V, F, **types), Stacked(tuple(blocks)))


def forward(model: LanguageModel, params: Any, carry: Any, tokens: Any, segment_ids: Any = None) -> Any:
    """The model as a function."""
    return model.apply(params, carry, tokens, segment_ids)


def decoder(shape: Shape, length: int, dtype: Any) -> Decoder:
    """A model with random parameters; the context of its carries is enough for ``length`` tokens."""
    model = build(shape, length, dtype)
    carry, tokens = model.initial_carry((1,)), jnp.zeros((1, 1), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(0), carry, tokens)
    step = decoding.step_of(Partial(partial(forward, model), params))
    return Decoder(step, lambda batch: model.initial_carry((batch,), length - 1), length, count(params))


def count(params: Any) -> int:
    """The number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def decode(model: Decoder, method: str, carry: Any, first: Any) -> Any:
    """Decode with jaxseq: tokens ``[B, L]`` and their log-probabilities."""
    if method == "beam 4":
        beam = decoding.BeamOptions(peers.BEAMS, num_results=1)
        found = decoding.beam_search(model.step, carry, first, beam, max_length=model.length, end_token=None)
        return found.tokens[:, 0], found.log_probabilities[:, 0]
    if method == "greedy":
        made = decoding.greedy(model.step, carry, first, max_length=model.length)
    else:
        filters = decoding.SamplingOptions(**peers.FILTERS)
        made = decoding.sample(model.step, carry, first, filters, key=jax.random.key(1), max_length=model.length)
    return made.tokens, made.log_probabilities


def candidate(name: str, model: Decoder, run: Callable[[Any, Any], Any]) -> Candidate:
    """A candidate that decodes with a fresh carry in every run; the first run, with compilation, is timed apart."""

    def prepare(inputs: Sequence[tuple]) -> Prepared:
        firsts = [jnp.asarray(first) for (first,) in inputs]

        def run_once(i: int) -> Any:
            return jax.block_until_ready(run(model.carry(len(firsts[i])), firsts[i]))

        start = peers.now()
        result = run_once(0)
        facts: Row = {"compile_s": peers.now() - start}

        def check() -> float:
            """The relative error of the log-probabilities, against scoring the tokens."""
            tokens, log_probabilities = (jnp.asarray(x) for x in result)
            scored = decoding.score(model.step, model.carry(len(firsts[0])), firsts[0], tokens)
            error = float(jnp.max(jnp.abs(scored - log_probabilities) / jnp.abs(scored)))
            half = log_probabilities.dtype != jnp.float32 or "bfloat16" in name
            return judged(error, 2e-2 if half else 1e-3)

        return Prepared(run_once, facts, check)

    return Candidate(name, prepare)


def case(
    name: str, shape: Shape, method: str, batch: int, dtype: str, length: int, repeats: int, budget_s: float = 60
) -> list[Row]:
    """One model, method and batch: tokens per second of jaxseq and its peers."""
    model = decoder(shape, length, jnp.dtype(dtype))
    candidates = [
        candidate("jaxseq", model, partial(decode, model, method)),
        candidate("Python loop", model, partial(peers.plain_loop, model, method)),
        candidate("Python loop, jitted choice", model, partial(peers.best_loop, model, method)),
    ]
    if shape.core == "attention":
        candidates += peers.transformers_candidates(shape, method, dtype, length)
    random = np.random.default_rng(0)
    inputs = [(random.integers(0, shape.vocab_size, batch).astype(np.int32),) for _ in range(2)]
    facts = {"model": name, "method": method, "B": batch, "L": length, "dtype": dtype, "parameters": model.parameters}
    rows = measure(facts, candidates, inputs, reference=None, repeats=repeats, warmup=1, budget_s=budget_s)
    for row in rows:
        if "median_s" in row:
            row["tokens_per_s"] = batch * length / row["median_s"]
    print_rows(rows)
    return rows


def step_costs(core: str, batch: int, repeats: int, lengths: Sequence[int], budget_s: float = 20) -> list[Row]:
    """Seconds per token for several generated lengths; the context of the carry is just enough for each."""
    rows: list[Row] = []
    for length in lengths:
        model = decoder(SMALL["lstm" if core == "lstm" else "transformer"], length, jnp.float32)
        inputs = [(np.full(batch, seed, np.int32),) for seed in (0, 1)]
        run = candidate("jaxseq", model, partial(decode, model, "greedy"))
        facts = {"model": core, "method": "step cost", "B": batch, "L": length, "dtype": "float32"}
        rows += measure(facts, [run], inputs, reference=None, repeats=repeats, warmup=1, budget_s=budget_s)
        if "median_s" in rows[-1]:
            rows[-1]["seconds_per_token"] = rows[-1]["median_s"] / length
            print(
                f"{core:12} B={batch:3} L={length:5} {1e6 * rows[-1]['seconds_per_token']:9.1f} us a step", flush=True
            )
    return rows


def print_rows(rows: Sequence[Row]) -> None:
    """Print one line per candidate."""
    ours = rows[0].get("tokens_per_s")
    for row in rows:
        what = f"{row['model']:12} {row['method']:8} B={row['B']:3} {row['dtype']:9}"
        if "tokens_per_s" in row and ours:
            ratio = ours / row["tokens_per_s"]
            print(f"{what} {row['name']:28} {row['tokens_per_s']:10.0f} tokens/s, jaxseq {ratio:5.2f} x", flush=True)
        else:
            print(f"{what} {row['name']:28} {row.get('error')}", flush=True)


def draw(rows: Sequence[Row]) -> None:
    """Draw the speedup of jaxseq over each peer, a bar a case, and the cost of a step against the length."""
    from matplotlib.figure import Figure

    timed = [row for row in rows if "tokens_per_s" in row]
    cases = list(dict.fromkeys((r["model"], r["method"], r["B"], r["dtype"]) for r in timed))
    names = list(dict.fromkeys(r["name"] for r in timed if r["name"] != "jaxseq"))
    colours = dict(zip(names, ("#a9c0d8", "#2b5c8f", "#b5483a", "#d9a441"), strict=False))
    if not cases:
        return
    figure = Figure(figsize=(11, 1.6 + 0.5 * len(cases)), dpi=150, layout="constrained", facecolor="white")
    bars, line = figure.subplots(1, 2, width_ratios=(3, 2))
    thickness = 0.8 / len(names)
    for place, found in enumerate(cases):
        rate = {r["name"]: r["tokens_per_s"] for r in timed if (r["model"], r["method"], r["B"], r["dtype"]) == found}
        for i, name in enumerate(n for n in names if n in rate and "jaxseq" in rate):
            ratio, at = rate["jaxseq"] / rate[name], place + (i - 1) * thickness
            bars.barh(at, ratio, thickness, color=colours[name], label=name)
            bars.text(ratio, at, f" {ratio:.1f}", va="center", fontsize=7)
    bars.set_yticks(range(len(cases)), [f"{m}, {how}, B={b}, {dtype}" for m, how, b, dtype in cases], fontsize=8)
    bars.invert_yaxis()
    bars.set_xscale("log")
    bars.axvline(1, color="#20242a", linewidth=0.8)
    bars.set_title("jaxseq: times as many tokens a second", loc="left", fontsize=10)
    handles = dict(zip(*reversed(bars.get_legend_handles_labels()), strict=True))
    bars.legend(handles.values(), handles.keys(), fontsize=7, frameon=False, loc="lower right")
    costs = [row for row in rows if "seconds_per_token" in row]
    for model, batch in dict.fromkeys((row["model"], row["B"]) for row in costs):
        mine = [row for row in costs if (row["model"], row["B"]) == (model, batch)]
        x, y = [row["L"] for row in mine], [1e6 * row["seconds_per_token"] for row in mine]
        line.plot(x, y, marker="o", markersize=3, label=f"{model}, B={batch}, {mine[0]['dtype']}")
    line.set(xscale="log", yscale="log", xlabel="tokens generated (and room in the carry)", ylabel="us a step")
    if costs:  # at least a decade and a half: noise must not look like a trend
        line.set_ylim(min(line.get_ylim()[0], 60), max(line.get_ylim()[1], 2000))
    line.set_title("A step's cost", loc="left", fontsize=10)
    line.legend(fontsize=7, frameon=False)
    file = RESULTS / f"decoding-{device_name()}.png"
    figure.savefig(file, metadata={"Software": None})
    print(f"written: {file.relative_to(RESULTS.parent.parent)} and its rows, .jsonl")


def main() -> None:
    """Run the cases; rows and a figure go to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small model, few repeats, nothing written")
    parser.add_argument("--table", action="store_true", help="only print the rows that there are as tables")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run (default: %(default)s)"
    )
    parser.add_argument(
        "--dtypes", nargs="+", default=["float32"], help="of parameters and computation (default: %(default)s)"
    )
    parser.add_argument(
        "--batches", nargs="+", type=int, default=[1, 32], help="sequences at once (default: %(default)s)"
    )
    parser.add_argument(
        "--budget", type=float, default=60, help="seconds a case without compilation (default: %(default)s)"
    )
    options = parse_arguments(parser)
    if options.quick:
        case("transformer", Shape("attention", 2, 64, 256), "beam 4", 2, "float32", 16, 3)
        step_costs("lstm", 1, 3, (16, 64))
        return
    if options.table:
        for file in sorted(RESULTS.glob("decoding-*.jsonl")):
            print(f"\n{file.stem}\n\n{table([json.loads(line) for line in file.read_text().splitlines()])}")
        return
    everything: list[Row] = []
    for part in options.parts:
        rows: list[Row] = []
        for measured in run(part, options.dtypes, options.batches, options.budget):
            rows += measured
            everything = write(part, rows)
    draw(everything)


def run(part: str, dtypes: Sequence[str], batches: Sequence[int], budget_s: float) -> Iterator[list[Row]]:
    """The cases of a part, one after another."""
    short = part == "gpt2" and jax.default_backend() == "cpu"
    for batch in batches:
        if part == "steps":
            for core in ("lstm", "attention"):
                yield step_costs(core, batch, 5, (64, 256, 1024, 2048), budget_s)
            continue
        for (name, shape), dtype, method in itertools.product(MODELS[part].items(), dtypes, METHODS):
            yield case(name, shape, method, batch, dtype, 32 if short else LENGTH, 7, budget_s)


def table(rows: Sequence[Row]) -> str:
    """Tokens a second, and how many times as fast jaxseq is as each peer, in Markdown; then the cost of a step."""
    timed = [row for row in rows if "tokens_per_s" in row]
    peers = list(dict.fromkeys(row["name"] for row in timed if row["name"] != "jaxseq"))
    lines = [f"| model, B | method | tokens/s | {' | '.join(peers)} |", "|---" * (3 + len(peers)) + "|"]
    for found in dict.fromkeys((r["model"], r["B"], r["dtype"], r["method"]) for r in timed):
        rate = {r["name"]: r["tokens_per_s"] for r in timed if (r["model"], r["B"], r["dtype"], r["method"]) == found}
        ratios = [f"{rate['jaxseq'] / rate[name]:.2f}" if name in rate else "" for name in peers]
        lines.append(f"| {found[0]}, {found[1]} | {found[3]} | {rate['jaxseq']:.0f} | {' | '.join(ratios)} |")
    steps = [row for row in rows if "seconds_per_token" in row]
    lines += ["", "| us a step | " + " | ".join(f"L {n}" for n in dict.fromkeys(r["L"] for r in steps)) + " |"]
    lines.append("|---" * (1 + len({row["L"] for row in steps})) + "|")
    for model, batch in dict.fromkeys((r["model"], r["B"]) for r in steps):
        costs = [f"{1e6 * r['seconds_per_token']:.0f}" for r in steps if (r["model"], r["B"]) == (model, batch)]
        lines.append(f"| {model}, {batch} | {' | '.join(costs)} |")
    return "\n".join(lines)


def write(part: str, rows: Sequence[Row]) -> list[Row]:
    """Write the rows, in place of earlier ones of the same case; returns all rows of the file."""

    def case_of(row: Row) -> tuple:
        return tuple(row[name] for name in ("model", "method", "B", "L", "dtype"))

    file = RESULTS / f"decoding-{device_name()}.jsonl"
    before = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    new = {case_of(row) for row in rows}
    everything = [row for row in before if case_of(row) not in new] + [{"part": part, **row} for row in rows]
    everything.sort(key=lambda row: (PARTS.index(row["part"]), row["B"], row["model"]))
    file.write_text("".join(json.dumps(row) + "\n" for row in everything))
    return everything


if __name__ == "__main__":
    main()
