"""The one place that walks traced functions: dataflow over, and evaluation of, jaxprs.

``trace`` turns a function into its jaxpr, ``propagate`` carries abstract facts through it and
``evaluate`` runs it while a rule looks at, and may replace, its equations. All of them recurse
through jit, remat, scan, while, cond, shard_map and custom derivatives. ``roll`` makes loops of
its equal blocks, so that none of this grows with depth.
"""

from jinit.tracing._jax import (
    aval_of,
    holds_float,
    is_hidden,
    is_tracing,
    scopes_of,
    source_line,
    sub_jaxprs,
    trace_context,
)
from jinit.tracing.dataflow import DataflowRules, Frame, propagate
from jinit.tracing.declared import in_context_mesh
from jinit.tracing.equations import equations_of, replace_beside
from jinit.tracing.evaluate import Run, evaluate
from jinit.tracing.interpreter import EquationView, Region, Rule
from jinit.tracing.rolling import Rolled, roll
from jinit.tracing.static import ARRAYS, ARRAYS_OR_SHAPES, Static, partition
from jinit.tracing.structure import PRODUCTS, Path, declares_dtypes, structure_of
from jinit.tracing.trace import TracedFunction, trace

__all__ = [
    "ARRAYS",
    "ARRAYS_OR_SHAPES",
    "PRODUCTS",
    "DataflowRules",
    "EquationView",
    "Frame",
    "Path",
    "Region",
    "Rolled",
    "Rule",
    "Run",
    "Static",
    "TracedFunction",
    "aval_of",
    "declares_dtypes",
    "equations_of",
    "evaluate",
    "holds_float",
    "in_context_mesh",
    "is_hidden",
    "is_tracing",
    "partition",
    "propagate",
    "replace_beside",
    "roll",
    "scopes_of",
    "source_line",
    "structure_of",
    "sub_jaxprs",
    "trace",
    "trace_context",
]
