"""One program on one device or many: meshes, sharding rules, placed batches, several processes."""

from jaxseq.distribution.batches import PlacedBatches, PlacedStreams, RowBatches, own_rows, place_rows, whole_arrays
from jaxseq.distribution.collectives import Collective, collectives, traffic_by_axes
from jaxseq.distribution.memory import check_memory, device_memory
from jaxseq.distribution.mesh import AXES, BATCH_AXES, format_mesh, make_mesh, parse_mesh
from jaxseq.distribution.placement import Placement
from jaxseq.distribution.processes import initialize_processes
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
    "check_memory",
    "collectives",
    "device_memory",
    "format_mesh",
    "format_placement",
    "initialize_processes",
    "make_mesh",
    "own_rows",
    "parameter_spec",
    "parse_mesh",
    "place_rows",
    "traffic_by_axes",
    "whole_arrays",
]
