"""All entries of docs/errata.md by their names."""

from collections.abc import Callable

import jax

from jaxseq.pipelines.errata import attention, layers, recurrence, search

ERRATA: dict[str, Callable[[], dict[str, float]]] = {
    "E1": attention.soft_argmax_gradient,
    "E2": recurrence.product_order,
    "E3": recurrence.four_terms,
    "E4": recurrence.product_indices,
    "E5": recurrence.explosion_conditions,
    "E6": recurrence.gates_do_not_settle_it,
    "E7": attention.encoding_base,
    "E8": attention.encoder_gives_keys_and_values,
    "E9": layers.dropout_place,
    "E10": layers.layer_norm_axes,
    "E11": attention.mask_columns,
    "E12": layers.embedding_arguments,
    "E13": attention.concatenated_outputs,
    "E14": search.box_regression,
    "E15": attention.cost_of_attention,
    "E16": attention.softmax_and_variance,
    "E17": search.beam_candidates,
    "E18": layers.one_by_one_filters,
}
"""The function that computes the numbers of each entry, each name beginning with that of its entry."""


def compute_errata(report: Callable[[str], None] = lambda name: None) -> dict[str, float]:
    """All numbers by name, in float64; ``report`` is called with the name of each entry that is done."""
    found: dict[str, float] = {}
    with jax.enable_x64(True):
        for name, compute in ERRATA.items():
            found |= compute()
            report(name)
    return found
