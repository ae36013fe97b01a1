"""The mesh is read from a text; the rules say how parameters are sharded."""

import pytest
from jax.sharding import PartitionSpec as P

from jaxseq.distribution import AXES, Placement, format_mesh, make_mesh, parameter_spec, parse_mesh

ONE = dict.fromkeys(AXES, 1)


def test_one_size_takes_the_devices_that_the_others_leave() -> None:
    assert parse_mesh("data=-1", 8) == ONE | {"data": 8}
    assert parse_mesh("data=2, fsdp=-1,tensor=2", 8) == ONE | {"data": 2, "fsdp": 2, "tensor": 2}
    assert parse_mesh("sequence=1", 1) == ONE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data=3", "is a mesh of 3 devices, but there are 8; one size may be -1"),
        ("data=2,tensor=2", "is a mesh of 4 devices, but there are 8"),
        ("data=-1,tensor=3", "8 devices are not a multiple of 3"),
        ("data=-1,fsdp=-1", "only one size may be -1, not those of data and fsdp"),
        ("data=4,data=2", "gives data twice"),
        ("data=0", "data must be a positive number or -1, not '0'"),
        ("data=two", "data must be a positive number or -1, not 'two'"),
        ("model=8", "'model=8' is not axis=size with an axis of data, fsdp, sequence, tensor"),
        ("8", "'8' is not axis=size"),
        ("", "'' is not axis=size"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_with_the_numbers(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_mesh(text, 8)


def test_every_mesh_has_all_axes() -> None:
    mesh = make_mesh("data=-1")
    assert mesh.axis_names == AXES
    assert format_mesh(mesh) == "data=1 on 1 cpu device"


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("core/cores_0/core/query/kernel", (64, 128), P("fsdp", "tensor")),
        (".opt_state/0/mu/core/cores_0/core/query/kernel", (64, 128), P("fsdp", "tensor")),
        ("core/out/kernel", (128, 64), P("tensor", "fsdp")),
        ("core/cores_1/core/layer/Dense_0/kernel", (64, 256), P("fsdp", "tensor")),
        ("core/cores_1/core/layer/Dense_1/kernel", (256, 64), P("tensor", "fsdp")),
        ("core/recurrent", (4, 32, 4, 32), P("tensor", "fsdp", None, None)),
        ("core/recurrent", (1, 64, 4, 64), P(None, "fsdp", None, None)),
        ("embedding/table", (1024, 64), P("tensor", "fsdp")),
        ("embedding/table", (1023, 64), P(None, "fsdp")),
        ("core/kernel", (63, 65), P(None, None)),
        ("core/bias", (256,), P(None)),
        ("anything", (8192,), P("fsdp")),
        ("a scalar", (), P()),
        ("nothing", (0, 8192), P(None, None)),
    ],
)
def test_a_parameter_and_its_moments_are_sharded_by_one_rule(path: str, shape: tuple, spec: P) -> None:
    assert parameter_spec(path, shape, ONE | {"fsdp": 2, "tensor": 2}) == spec
    assert parameter_spec(path, shape, ONE) == P(*[None] * len(shape))


def test_without_a_mesh_nothing_changes() -> None:
    placement, tree = Placement.on(None), {"a": 1}
    assert placement.place(tree) is tree and placement.rows(tree) is tree and placement.batch(tree) is tree
    loss = len
    assert placement.loss(loss) is loss and placement.batches(loss) is loss
    with placement.ambient():
        assert placement.build(lambda: 3) == 3
