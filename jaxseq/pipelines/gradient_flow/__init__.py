"""Parts of ``experiments/gradient_flow.py``: what each measures, draws and reports."""

from jaxseq.pipelines.gradient_flow.clipping import Clipping
from jaxseq.pipelines.gradient_flow.forget_bias import ForgetBias
from jaxseq.pipelines.gradient_flow.heat_maps import HeatMaps
from jaxseq.pipelines.gradient_flow.memory_training import (
    HELD_OUT,
    MemoryModel,
    MemoryTask,
    Progress,
    Trainer,
    prediction_error,
)
from jaxseq.pipelines.gradient_flow.mixers import Mixers
from jaxseq.pipelines.gradient_flow.part import Part, Say, Values
from jaxseq.pipelines.gradient_flow.singular_values import SingularValues

__all__ = [
    "HELD_OUT",
    "Clipping",
    "ForgetBias",
    "HeatMaps",
    "MemoryModel",
    "MemoryTask",
    "Mixers",
    "Part",
    "Progress",
    "Say",
    "SingularValues",
    "Trainer",
    "Values",
    "prediction_error",
]
