"""Looks at a model: where its parameters come from, and how its layers behave over widths."""

from jinit.inspect.coord_check import coord_check
from jinit.inspect.coordinates import CoordCheck, CoordFit, CoordRow
from jinit.inspect.describe import Description, NormDescription, ParameterDescription, describe

__all__ = [
    "CoordCheck",
    "CoordFit",
    "CoordRow",
    "Description",
    "NormDescription",
    "ParameterDescription",
    "coord_check",
    "describe",
]
