"""One program on one device or many: meshes, sharding rules, placed batches, several processes."""

from jaxseq.distribution.batches import PlacedBatches, PlacedStreams, RowBatches, own_rows, place_rows
from jaxseq.distribution.collectives import Collective, collectives, traffic_by_axes
from jaxseq.distribution.mesh import AXES, BATCH_AXES, format_mesh, make_mesh, parse_mesh
from jaxseq.distribution.placement import Placement, to_host
from jaxseq.distribution.report import ArrayInfo, array_table, format_placement
from jaxseq.distribution.rules import FSDP_MIN_SIZE, LOGICAL_AXES, PARAMETER_AXES, parameter_spec

__all__ = [
    "AXES",
    "BATCH_AXES",
    "FSDP_MIN_SIZE",
    "LOGICAL_AXES",
    "PARAMETER_AXES",
    "ArrayInfo",
    "Collective",
    "PlacedBatches",
    "PlacedStreams",
    "Placement",
    "RowBatches",
    "array_table",
    "collectives",
    "format_mesh",
    "format_placement",
    "make_mesh",
    "own_rows",
    "parameter_spec",
    "parse_mesh",
    "place_rows",
    "to_host",
    "traffic_by_axes",
]
