"""Collectives are read from the text of a program: kind, axes, bytes and how often they run."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from jaxseq.distribution.collectives import _groups, collectives, traffic_by_axes

TEXT = """HloModule example, entry_computation_layout={(f32[8])->f32[8]}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], f32[4,2])) -> (s32[], f32[4,2]) {
  %r = f32[4,2]{1,0} all-reduce(%x), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add
}

%condition (p: (s32[], f32[4,2])) -> pred[] {
  ROOT %c = pred[] compare(%i, %n), direction=LT
}

%dead (p: f32[8]) -> f32[8] {
  %d = f32[8]{0} all-reduce(%p), channel_id=9, replica_groups=[1,4]<=[4], to_apply=%add
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %w = (s32[], f32[4,2]{1,0}) while(%t), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %g = bf16[8]{0} all-gather(%p), channel_id=2, replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}
  %s = f32[2]{0} reduce-scatter(%p), channel_id=3, replica_groups=mesh['a'=2,'b'=2] {'a','b'}, to_apply=%add
  %q = f32[8]{0} collective-permute(%p), channel_id=4, source_target_pairs={{0,2},{1,3},{2,0},{3,1}}
  %one = f32[8]{0} all-reduce(%p), channel_id=5, replica_groups=[4,1]<=[4], to_apply=%add
  %pair = (f32[2]{0}, f32[]) all-reduce(%p, %q), channel_id=6, replica_groups=mesh['a'=2,'b'=2] {'b'}, to_apply=%add
}
"""


def mesh() -> Mesh:
    """Two axes of two devices, of which there need be only one."""
    return Mesh(np.array([jax.devices()[0]] * 4).reshape(2, 2), ("rows", "columns"))


def test_a_program_is_read() -> None:
    found = [(c.kind, c.axes, c.devices, c.bytes, c.times, c.in_loop) for c in collectives(TEXT, mesh())]
    assert found == [
        ("all-reduce", ("columns",), 2, 32, 5, True),
        ("all-gather", ("rows",), 2, 16, 1, False),
        ("reduce-scatter", ("rows", "columns"), 4, 32, 1, False),
        ("collective-permute", ("rows",), 2, 32, 1, False),
        ("all-reduce", ("columns",), 2, 12, 1, False),
    ]


def test_traffic_is_that_of_the_ring_algorithms() -> None:
    assert traffic_by_axes(collectives(TEXT, mesh())) == {
        ("columns", "all-reduce"): 2 * 0.5 * (32 * 5 + 12),
        ("rows", "all-gather"): 0.5 * 16,
        ("rows+columns", "reduce-scatter"): 0.75 * 32,
        ("rows", "collective-permute"): 32,
    }


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}, x", [[0, 2], [1, 3]]),
        ("replica_groups=[2,2]<=[4], x", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}, x", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=4] {'a'}, x", [[0, 1, 2, 3]]),
    ],
)
def test_groups_are_read_in_every_notation(text: str, groups: list) -> None:
    found = _groups(text)
    assert found is not None and found.tolist() == groups
