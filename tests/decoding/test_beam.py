"""Beam search: against enumeration, against its definition written out, and against greedy decoding."""

import itertools
from dataclasses import fields, replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from toy_models import EVERY_KIND, Model, as_rows, every_sequence, model, table_step

from jaxseq.decoding import (
    GNMT,
    BeamOptions,
    Coverage,
    Forbid,
    Hypotheses,
    MaxLength,
    MinLength,
    NoRepeatedNgrams,
    Prefix,
    beam_search,
    greedy,
    pad_prompts,
    prefill,
    sample,
    score,
)

V, T, END = 3, 3, 1
NORMALIZATIONS = {"none": lambda n: 1.0, "mean": float, "gnmt": lambda n: ((5 + n) / 6) ** 0.6}
SEQUENCES = every_sequence(V, T, END)
ROWS, LENGTHS = as_rows(SEQUENCES, T, END)
FIRST = jnp.array([0, 2], jnp.int32)


def sequences(found: Hypotheses, row: int) -> list[tuple[int, ...]]:
    """The hypotheses of a row, cut to their lengths."""
    return [tuple(t[:n]) for t, n in zip(found.tokens[row].tolist(), found.lengths[row].tolist(), strict=True)]


@cache
def enumerated(kind: str) -> np.ndarray:
    """log P of every sequence for every row, by whole forwards of the model."""
    m = model(kind, V)
    read = jnp.stack([jnp.concatenate([jnp.full((len(ROWS), 1), first), ROWS[:, :-1]], -1) for first in FIRST])
    _, logits = jax.jit(m.forward)(m.carry(len(FIRST), len(ROWS)), read)
    gains = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits), np.float64), ROWS[None, ..., None], -1)[..., 0]
    return np.where(np.arange(T) < LENGTHS[:, None], gains, 0).sum(-1)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_with_a_beam_for_every_sequence_it_is_enumeration(kind: str) -> None:
    m = model(kind, V)
    for name, divisor in NORMALIZATIONS.items():
        options = BeamOptions(V**T, normalization=name)
        found = beam_search(m.step, m.carry(2), FIRST, options, max_length=T, end_token=END)
        for row, totals in enumerate(enumerated(kind)):
            scores = totals / np.array([divisor(n) for n in LENGTHS])
            order = np.argsort(-scores, kind="stable")
            count = len(order)
            np.testing.assert_allclose(found.scores[row, :count], scores[order], atol=1e-5)
            assert np.array_equal(found.tokens[row, :count], ROWS[order])
            assert np.array_equal(found.lengths[row, :count], LENGTHS[order])
            np.testing.assert_allclose(found.log_probabilities[row, :count], totals[order], atol=1e-5)
            assert np.all(np.isneginf(found.scores[row, count:])) and np.all(found.lengths[row, count:] == 0)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_one_beam_is_greedy_and_scores_are_those_of_what_is_returned(kind: str) -> None:
    vocab_size, length = 6, 9
    m = model(kind, vocab_size, seed=1)
    first = jnp.arange(4, dtype=jnp.int32)
    best = greedy(m.step, m.carry(4), first, end_token=END, max_length=length)
    for normalization in NORMALIZATIONS:
        search = partial(beam_search, m.step, m.carry(4), first, max_length=length, end_token=END)
        one = search(BeamOptions(1, normalization=normalization))
        assert np.array_equal(one.tokens[:, 0], best.tokens)
        assert np.array_equal(one.lengths[:, 0], best.lengths)
        np.testing.assert_allclose(one.log_probabilities[:, 0], best.log_probabilities, atol=1e-5)
    several = search(BeamOptions(4, normalization=GNMT(0.9)))
    again = score(m.step, m.carry(4), first, several.tokens, several.lengths)
    np.testing.assert_allclose(several.log_probabilities, again, atol=1e-5)
    np.testing.assert_allclose(
        several.scores, again / ((5 + several.lengths.astype(jnp.float32)) / 6) ** 0.9, atol=1e-5
    )
    assert np.all(np.diff(several.scores, axis=-1) <= 0)
    assert all(len({tuple(h) for h in row}) == 4 for row in several.tokens.tolist())
    for row, lengths in zip(several.tokens.tolist(), several.lengths.tolist(), strict=True):
        for tokens, n in zip(row, lengths, strict=True):
            assert END not in tokens[: n - 1] and set(tokens[n:]) <= {END}
            assert n == length or tokens[n - 1] == END


def by_definition(table, first, num_beams, length, divisor, groups=1, diversity=0.0, ends=(END,)):
    """The definition, written out for one row: per group a beam, and a pool of the K best that have finished."""
    width = num_beams // groups
    scores = np.asarray(jax.nn.log_softmax(table), np.float64)  # by position and token before
    live, finished = [[((), 0.0)] for _ in range(groups)], [[] for _ in range(groups)]
    for position in range(length):
        taken = np.zeros(scores.shape[-1])
        for g in range(groups):
            extensions = []
            for tokens, total in live[g]:
                for token, gain in enumerate(scores[position, tokens[-1] if tokens else first]):
                    extensions.append((total + gain - diversity * taken[token], (*tokens, token), total + gain))
            extensions.sort(key=lambda extension: -extension[0])
            over = width == 1 and extensions and extensions[0][1][-1] in ends
            live[g] = []
            for _, s, total in extensions:
                if s[-1] in ends and len(live[g]) < width:
                    finished[g].append((s, total))
                    taken[s[-1]] += 1
                elif s[-1] not in ends and len(live[g]) < width and not over:
                    live[g].append((s, total))
                    taken[s[-1]] += 1
                elif s[-1] not in ends and over:
                    break
    best = []
    for g in range(groups):
        best += sorted(finished[g] + live[g], key=lambda f: -f[1] / divisor(len(f[0])))[:width]
    return sorted(best, key=lambda f: -f[1] / divisor(len(f[0])))


@pytest.mark.parametrize(
    ("num_beams", "groups", "diversity"),
    [
        pytest.param(2, 1, 0.0, marks=pytest.mark.full),
        (3, 1, 0.0),
        (4, 2, 0.7),
        pytest.param(6, 3, 0.3, marks=pytest.mark.full),
    ],
)
def test_it_is_its_definition(num_beams: int, groups: int, diversity: float) -> None:
    vocab_size, length = 5, 7
    for seed, (name, divisor) in itertools.product(range(4), NORMALIZATIONS.items()):
        table = 2.0 * jax.random.normal(jax.random.key(seed), (length, vocab_size, vocab_size))
        found = beam_search(
            Partial(table_step, table),
            jnp.zeros(vocab_size, jnp.int32),
            jnp.arange(vocab_size, dtype=jnp.int32),
            BeamOptions(num_beams, normalization=name, early_stopping=False, num_groups=groups, diversity=diversity),
            max_length=length,
            end_token=END,
        )
        for first in range(vocab_size):
            want = by_definition(table, first, num_beams, length, divisor, groups, diversity)
            got = [
                tuple(t[:n]) for t, n in zip(found.tokens[first].tolist(), found.lengths[first].tolist(), strict=True)
            ]
            assert got[: len(want)] == [s for s, _ in want], (seed, name, first)
            np.testing.assert_allclose(found.log_probabilities[first, : len(want)], [t for _, t in want], atol=1e-4)


@pytest.mark.full
def test_beam_search_with_several_end_tokens_equals_its_definition() -> None:
    vocab_size, length, ends = 6, 6, (4, 2)
    table = 2.0 * jax.random.normal(jax.random.key(11), (length, vocab_size, vocab_size))
    arguments = (Partial(table_step, table), jnp.zeros(vocab_size, jnp.int32), jnp.arange(vocab_size, dtype=jnp.int32))
    rules = [MinLength(1, jnp.array([2, 4]))]
    for num_beams in (1, 3):
        options = BeamOptions(num_beams, normalization="mean")
        found = beam_search(*arguments, options, max_length=length, end_token=ends)
        for first in range(vocab_size):
            want = by_definition(table, first, num_beams, length, float, ends=ends)
            assert sequences(found, first) == [s for s, _ in want]
        rows = np.arange(length) >= np.asarray(found.lengths)[..., None]
        assert set(np.asarray(found.tokens)[rows].tolist()) <= {4}
    found = beam_search(*arguments, BeamOptions(2), max_length=length, end_token=ends, constraints=rules)
    assert not np.isin(found.tokens[..., 0], ends).any()
    best, single = greedy(*arguments, max_length=length, end_token=2), BeamOptions(1)
    for end in (jnp.int32(2), np.array([2])):
        one = beam_search(*arguments, single, max_length=length, end_token=end)
        assert np.array_equal(one.tokens[:, 0], best.tokens)


def transformers_search(scores, first, num_beams, length, divisor):
    """Beam search as ``transformers`` does it with ``early_stopping="never"``, for one row."""
    live, pool = [((), 0.0)], []
    for _ in range(length):
        extensions = [((*s, v), t + gain) for s, t in live for v, gain in enumerate(scores[s[-1] if s else first])]
        live = []
        for rank, (s, total) in enumerate(sorted(extensions, key=lambda e: -e[1])[: 2 * num_beams]):
            if s[-1] == END and rank < num_beams:
                pool.append((s, total))
            elif s[-1] != END and len(live) < num_beams:
                live.append((s, total))
    return sorted((total / divisor(len(s)) for s, total in pool + live), reverse=True)[:num_beams]


@pytest.mark.full
def test_the_results_are_never_worse_than_those_of_transformers() -> None:
    """No sum of K scores and no best score is lower; some sums are higher."""
    vocab_size, length, higher = 6, 7, 0
    for num_beams, (name, divisor) in itertools.product((2, 4), NORMALIZATIONS.items()):
        for seed in range(6):
            table = 2.0 * jax.random.normal(jax.random.key(seed), (vocab_size, vocab_size))
            arguments = Partial(table_step, table), jnp.zeros(6, jnp.int32), jnp.arange(6, dtype=jnp.int32)
            options = BeamOptions(num_beams, normalization=name)
            found = np.asarray(beam_search(*arguments, options, max_length=length, end_token=END).scores, np.float64)
            scores = np.asarray(jax.nn.log_softmax(table), np.float64)
            for first in range(vocab_size):
                theirs = transformers_search(scores, first, num_beams, length, divisor)
                assert found[first].sum() >= sum(theirs) - 1e-4 and found[first, 0] >= theirs[0] - 1e-4
                higher += found[first].sum() > sum(theirs) + 1e-3
    assert higher > 0


@pytest.mark.full
def test_the_carry_of_a_result_is_the_one_after_reading_it() -> None:
    """Decoding continues from it as from a carry that has read the result from the start."""
    vocab_size, length = 6, 5
    m = model("hybrid", vocab_size, seed=2)
    options = BeamOptions(3, 2, keep_carry=True)
    found = beam_search(m.step, m.carry(2), FIRST, options, max_length=length, end_token=END)
    goes_on = partial(greedy, m.step, max_length=4)
    after = goes_on(found.carry, found.last_tokens)
    rows = [[first, *s] for row, first in enumerate(FIRST.tolist()) for s in sequences(found, row)]
    assert len({len(row) for row in rows}) > 1
    assert found.last_tokens.reshape(-1).tolist() == [row[-1] for row in rows]
    again = goes_on(*prefill(m.forward, m.carry(len(rows)), *pad_prompts(rows), max_length=4))
    assert np.array_equal(after.tokens.reshape(len(rows), -1), again.tokens)
    np.testing.assert_allclose(after.log_probabilities.reshape(-1), again.log_probabilities, atol=1e-4)


@pytest.mark.full
def test_the_carry_of_a_single_row_and_of_an_empty_result() -> None:
    table = jnp.full((3, 3), -jnp.inf).at[:, END].set(0.0)
    options = BeamOptions(3, keep_carry=True)
    found = beam_search(
        Partial(table_step, table), jnp.asarray(7), jnp.asarray(2), options, max_length=2, end_token=END
    )
    assert found.lengths.tolist() == [1, 0, 0] and found.carry.tolist() == [8, 7, 7]
    assert found.last_tokens.tolist() == [END, 2, 2]
    plain = beam_search(Partial(table_step, table), jnp.asarray(7), jnp.asarray(2), max_length=2, end_token=END)
    assert plain.carry is None and plain.last_tokens is None


def test_a_batch_without_rows_has_empty_results() -> None:
    step = Partial(table_step, jnp.zeros((V, V)))
    found = beam_search(
        step, jnp.zeros((2, 0), jnp.int32), jnp.zeros((2, 0), jnp.int32), BeamOptions(3, 2), max_length=4, end_token=END
    )
    assert [x.shape for x in found[:4]] == [(2, 0, 2, 4), (2, 0, 2), (2, 0, 2), (2, 0, 2)]


@pytest.mark.full
def test_a_row_that_meets_nan_has_nan_results_and_no_other_row_does() -> None:
    table = jax.random.normal(jax.random.key(0), (5, 5)).at[3].set(jnp.nan).at[4, 2].set(jnp.inf)
    table = table.at[:3, 3:].set(-jnp.inf)
    step, first = Partial(table_step, table), jnp.array([0, 3, 4], jnp.int32)
    found = beam_search(step, jnp.zeros(3, jnp.int32), first, BeamOptions(2), max_length=3, end_token=END)
    for numbers in (found.log_probabilities, found.scores):
        assert np.isfinite(numbers[0]).all() and np.isnan(numbers[1:]).all()


@pytest.mark.full
def test_first_tokens_outside_the_vocabulary_are_refused_and_give_nan_under_jit() -> None:
    step, carry = Partial(table_step, jnp.zeros((V, V))), jnp.zeros(2, jnp.int32)
    search = partial(beam_search, step, carry, max_length=3, end_token=END)
    with pytest.raises(ValueError, match=r"first_tokens: id 3 at index \(1,\) is outside \[0, 3\)"):
        search(jnp.array([0, V]))
    for wrong in (-1, V):
        rows = jax.jit(search)(jnp.array([0, wrong])).log_probabilities
        assert np.isfinite(rows[0]).all() and np.isnan(rows[1]).all()


@pytest.mark.full
def test_options_and_lengths_may_be_traced() -> None:
    table = jax.random.normal(jax.random.key(3), (V, V))

    def run(diversity, shortest, longest):
        options = BeamOptions(4, num_groups=2, diversity=diversity)
        rules = [MinLength(shortest, END), MaxLength(longest, END)]
        step = Partial(table_step, table)
        return beam_search(
            step, jnp.zeros(2, jnp.int32), FIRST, options, max_length=5, end_token=END, constraints=rules
        )

    jax.tree.map(np.testing.assert_array_equal, jax.jit(run)(0.5, 1, 3), run(0.5, 1, 3))


@pytest.mark.parametrize("num_results", [1, pytest.param(3, marks=pytest.mark.full)])
def test_stopping_early_changes_nothing_but_the_number_of_steps(num_results: int) -> None:
    vocab_size, length, calls = 5, 16, []

    def step(table, carry, tokens):
        jax.debug.callback(lambda: calls.append(1))
        return table_step(table, carry, tokens)

    def run(options):
        calls.clear()
        arguments = (Partial(step, table), jnp.zeros(4, jnp.int32), jnp.arange(4, dtype=jnp.int32))
        found = beam_search(*arguments, options, max_length=length, end_token=END)
        jax.block_until_ready(found)
        jax.effects_barrier()
        return found, len(calls)

    saved = 0
    for seed, name in itertools.product(range(5), NORMALIZATIONS):
        table = jax.random.normal(jax.random.key(seed), (vocab_size, vocab_size)).at[:, END].add(1.5)
        options = BeamOptions(3, num_results, name)
        whole, all_steps = run(replace(options, early_stopping=False))
        early, steps = run(options)
        jax.tree.map(np.testing.assert_array_equal, whole, early)
        saved += all_steps - steps
        assert steps <= all_steps
    assert saved > 0


def test_two_beams_find_what_hides_behind_a_poor_first_token() -> None:
    """The textbook case: the first choice is 0.6 against 0.4, but behind 0.4 stands certainty."""
    start, poor, good, end = 0, 1, 2, 3
    chances = {(start, poor): 0.6, (start, good): 0.4, (good, end): 1.0}
    chances |= {(poor, token): 0.25 for token in range(4)}
    table = jnp.full((4, 4), -jnp.inf)
    for (before, after), chance in chances.items():
        table = table.at[before, after].set(jnp.log(chance))
    table = table.at[end, end].set(0.0)
    arguments = (Partial(table_step, table), jnp.zeros((), jnp.int32), jnp.asarray(start))
    greedily = greedy(*arguments, end_token=end, max_length=4)
    assert greedily.tokens[0] == poor
    best = beam_search(*arguments, BeamOptions(2), max_length=4, end_token=end)
    assert best.tokens[0].tolist() == [good, end, end, end]
    np.testing.assert_allclose(np.exp(best.log_probabilities[0]), 0.4, rtol=1e-6)
    assert best.log_probabilities[0] > greedily.log_probabilities


@pytest.mark.full
def test_a_batch_gives_what_each_row_gives_alone_in_any_shape() -> None:
    table = 2.0 * jax.random.normal(jax.random.key(2), (6, 6))
    step = Partial(table_step, table)
    options = {"options": BeamOptions(3, normalization="gnmt"), "max_length": 6, "end_token": END}
    first = jnp.arange(6, dtype=jnp.int32)
    batch = beam_search(step, jnp.zeros(6, jnp.int32), first, **options)
    grid = beam_search(step, jnp.zeros((2, 3), jnp.int32), first.reshape(2, 3), **options)
    for a, b in zip(batch[:4], grid[:4], strict=True):
        np.testing.assert_array_equal(a, b.reshape(a.shape))
    for row in range(6):
        alone = beam_search(step, jnp.zeros((), jnp.int32), first[row], **options)
        jax.tree.map(lambda whole, one, row=row: np.testing.assert_array_equal(whole[row], one), batch, alone)
    assert alone.tokens.shape == (3, 6)


@pytest.mark.full
def test_large_rows_of_a_carry_follow_their_hypotheses() -> None:
    """A leaf of 16 KiB a row is moved, not gathered: the history that it holds must be its hypothesis' own."""

    def step(table, carry, tokens):
        history = jnp.roll(carry["history"], 1, axis=-1).at[..., 0, 0].set(tokens.astype(jnp.float32))
        gone = carry["history"][..., 0, :3].astype(jnp.int32)
        logits = table[tokens] + sum(table[gone[..., i]][..., ::-1] for i in range(3))
        return {"history": history, "count": carry["count"] + 1}, logits

    def carry(*rows):
        return {"history": jnp.zeros((*rows, 64, 64)), "count": jnp.zeros(rows, jnp.int32)}

    table = jax.random.normal(jax.random.key(3), (5, 5))
    first = jnp.array([0, 3, 4], jnp.int32)
    step = Partial(step, table)
    found = beam_search(step, carry(3), first, max_length=10, end_token=None)
    again = score(step, carry(3), first, found.tokens)
    np.testing.assert_allclose(found.log_probabilities, again, atol=1e-5)
    assert found.lengths.tolist() == [[10] * 4] * 3


@pytest.mark.full
def test_diverse_groups_differ_and_alone_they_are_beams_of_their_own() -> None:
    table = 2.0 * jax.random.normal(jax.random.key(4), (6, 6))
    arguments = (Partial(table_step, table), jnp.zeros(6, jnp.int32), jnp.arange(6, dtype=jnp.int32))
    sizes = {"end_token": END, "max_length": 5}
    apart = beam_search(*arguments, BeamOptions(4, num_groups=2), **sizes)
    two = beam_search(*arguments, BeamOptions(2), **sizes)
    np.testing.assert_allclose(apart.scores[:, ::2], two.scores, atol=1e-6)
    np.testing.assert_allclose(apart.scores[:, 1::2], two.scores, atol=1e-6)


@pytest.mark.full
def test_groups_that_repel_each_other_have_different_first_tokens() -> None:
    table = 2.0 * jax.random.normal(jax.random.key(4), (6, 6))
    arguments = (Partial(table_step, table), jnp.zeros(6, jnp.int32), jnp.arange(6, dtype=jnp.int32))
    options = BeamOptions(3, num_groups=3, diversity=1e6)
    repelled = beam_search(*arguments, options, end_token=END, max_length=5)
    assert all(len({h[0] for h in row}) == 3 for row in repelled.tokens.tolist())


def test_coverage_is_the_formula_over_what_was_attended_to() -> None:
    beta, sources = 0.3, 4
    attention = jax.nn.softmax(2.0 * jax.random.normal(jax.random.key(5), (V, sources)))
    table = jax.random.normal(jax.random.key(6), (T, V, V))
    mask = np.array([[True] * 4, [True, True, True, False]])

    def step(both, carry, tokens):
        table, attention = both
        return {"weights": attention[tokens], "at": carry["at"] + 1}, table[carry["at"], tokens]

    found = beam_search(
        Partial(step, (table, attention)),
        {"weights": jnp.zeros((2, sources)), "at": jnp.zeros(2, jnp.int32)},
        FIRST,
        BeamOptions(
            V**T, normalization="mean", coverage=Coverage(lambda carry: carry["weights"], beta, jnp.asarray(mask))
        ),
        max_length=T,
        end_token=END,
    )
    log_chances = np.asarray(jax.nn.log_softmax(table), np.float64)
    weights = np.asarray(attention, np.float64)
    for row, first in enumerate(FIRST.tolist()):
        want = []
        for sequence in SEQUENCES:
            before = (first, *sequence[:-1])
            total = sum(log_chances[t, a, b] for t, (a, b) in enumerate(zip(before, sequence, strict=True)))
            covered = np.log(np.minimum(weights[list(before)].sum(0), 1))[mask[row]].sum()
            want.append((total / len(sequence) + beta * covered, sequence))
        want.sort(reverse=True)
        np.testing.assert_allclose(found.scores[row, : len(want)], [s for s, _ in want], atol=1e-5)
        assert sequences(found, row)[: len(want)] == [s for _, s in want]


ALLOWED = {
    "min": (MinLength(2, END), lambda s: END not in s[:2]),
    "max": (MaxLength(1, END), lambda s: s[-1] == END and len(s) <= 2),
    "complete": (MaxLength(None, END), lambda s: s[-1] == END),
    "forbid": (Forbid([2]), lambda s: 2 not in s),
    "prefix": (Prefix([2, 0]), lambda s: s[:2] == (2, 0)),
    "bigrams": (NoRepeatedNgrams(2), lambda s: len(set(itertools.pairwise(s))) == len(s) - 1),
    "unigrams": (NoRepeatedNgrams(1), lambda s: len(set(s)) == len(s)),
}


@pytest.mark.parametrize(
    "names",
    [
        ("min", "complete"),
        ("forbid", "max", "bigrams"),
        *(pytest.param((name,), marks=pytest.mark.full) for name in ALLOWED),
    ],
    ids="-".join,
)
def test_constraints_leave_exactly_what_they_allow(names: tuple[str, ...]) -> None:
    length = 4
    table = jax.random.normal(jax.random.key(7), (length, V, V))
    found = beam_search(
        Partial(table_step, table),
        jnp.zeros((), jnp.int32),
        jnp.asarray(0),
        BeamOptions(V**length),
        max_length=length,
        end_token=END,
        constraints=[ALLOWED[name][0] for name in names],
    )
    chances = np.asarray(jax.nn.log_softmax(table), np.float64)
    want = []
    for sequence in every_sequence(V, length, END):
        if all(ALLOWED[name][1](sequence) for name in names):
            places = zip(range(length), (0, *sequence[:-1]), sequence, strict=False)
            want.append((sum(chances[place] for place in places), sequence))
    want.sort(reverse=True)
    filled = int((found.lengths > 0).sum())
    got = [tuple(t[:n]) for t, n in zip(found.tokens.tolist(), found.lengths.tolist(), strict=True)][:filled]
    assert got == [s for _, s in want]
    np.testing.assert_allclose(found.log_probabilities[:filled], [s for s, _ in want], atol=1e-5)  # the model's own


@pytest.mark.full
def test_a_row_has_its_own_prefix_and_sampling_and_greedy_follow_it(key: jax.Array) -> None:
    table = jax.random.normal(jax.random.key(8), (5, 5))
    prefixes = jnp.array([[2, 3], [4, 0], [0, 0]])
    arguments = (Partial(table_step, table), jnp.zeros(3, jnp.int32), jnp.zeros(3, jnp.int32))
    options = {"end_token": END, "max_length": 5, "constraints": [Prefix(prefixes)]}
    runs = [
        greedy(*arguments, **options).tokens,
        sample(*arguments, key=key, **options).tokens,
        sample(*arguments, key=key, num_samples=2, **options).tokens[:, 1],
        beam_search(*arguments, BeamOptions(3), **options).tokens[:, 2],
    ]
    for tokens in runs:
        assert np.array_equal(tokens[:, :2], prefixes)


def test_a_memory_is_read_by_every_beam_of_its_row() -> None:
    """A memory is repeated for the beams and gives what the same arrays in the carry give."""
    tables = jax.random.normal(jax.random.key(9), (3, 5, 5))

    def reads(carry, tokens, memory):
        return carry + 1, jax.vmap(lambda table, token: table[token])(memory, tokens)

    def carries(carry, tokens):
        return carry, jax.vmap(lambda table, token: table[token])(carry, tokens)

    first = jnp.arange(3, dtype=jnp.int32)
    options = {"options": BeamOptions(3), "max_length": 5, "end_token": END}
    with_memory = beam_search(reads, jnp.zeros(3, jnp.int32), first, memory=tables, **options)
    jax.tree.map(np.testing.assert_array_equal, with_memory, beam_search(carries, tables, first, **options))
    again = score(reads, jnp.zeros(3, jnp.int32), first, with_memory.tokens, with_memory.lengths, memory=tables)
    np.testing.assert_allclose(again, with_memory.log_probabilities, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_beams": 0}, "num_beams must be at least 1, not 0"),
        ({"num_beams": 82}, r"num_beams=82: there are only 81 sequences of max_length=4 over a vocabulary of 3"),
        ({"num_beams": 4, "max_length": 1}, r"there are only 3 sequences"),
        ({"num_beams": 3, "num_groups": 2}, "not divisible by num_groups=2"),
        ({"num_groups": 0}, "not divisible by num_groups=0"),
        ({"num_results": 3}, r"num_results must be in \[1, 2\].*not 3"),
        ({"diversity": 1.0}, "num_groups must be above 1"),
        ({"diversity": -1.0}, "diversity must be at least 0.*not -1.0"),
        ({"normalization": "sum"}, "unknown normalization 'sum'; known: none, mean, gnmt"),
        ({"normalization": lambda n: 2.0 - n}, "normalization of length 2 is 0.0"),
        ({"normalization": lambda n: 1e-50}, "normalization of length 1 is 1e-50"),
        ({"constraints": [MinLength(1, 2)]}, f"MinLength has the end token 2, decoding has {END}"),
        ({"end_token": V}, f"end_token {V} outside the vocabulary of {V}"),
        ({"max_length": 0}, "max_length must be at least 1, not 0"),
        ({"carry": jnp.zeros(3, jnp.int32)}, r"has shape \(3,\): it must lead with the batch dimensions \(2,\)"),
        ({"memory": {"source": jnp.zeros((3, 2))}}, r"\['source'\] has shape \(3, 2\)"),
        ({"constraints": [Forbid([7])]}, r"Forbid: tokens: id 7 at index \(0,\) is outside \[0, 3\)"),
        ({"constraints": [Forbid([0, 1, 2])]}, "rules out all 3 tokens"),
        ({"constraints": [Prefix([0] * 5)]}, "Prefix of 5 tokens is longer than max_length=4"),
        ({"constraints": [MinLength(-1, END)]}, r"MinLength\(-1\)"),
        ({"constraints": [NoRepeatedNgrams(0)]}, "size must be at least 1, not 0"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict, message: str) -> None:
    names = {field.name for field in fields(BeamOptions)}
    options = {"num_beams": 2} | {name: value for name, value in wrong.items() if name in names}
    others = {name: value for name, value in wrong.items() if name not in names}
    arguments = {"carry": jnp.zeros(2, jnp.int32), "end_token": END, "max_length": 4} | others
    carry = arguments.pop("carry")
    with pytest.raises(ValueError, match=message):
        beam_search(Partial(table_step, jnp.zeros((V, V))), carry, FIRST, BeamOptions(**options), **arguments)


def test_a_negative_strength_of_coverage_is_refused() -> None:
    with pytest.raises(ValueError, match=r"strength must be at least 0.*not -1\.0"):
        Coverage(lambda carry: carry, -1.0)


def test_a_cache_without_the_room_is_refused(key: jax.Array) -> None:
    m: Model = model("cache", V)
    for run in (beam_search, greedy, partial(sample, key=key)):
        with pytest.raises(ValueError, match=r"max_length=30 looks 29 positions back, but the carry keeps 24"):
            run(m.step, m.carry(2), FIRST, end_token=END, max_length=30)
