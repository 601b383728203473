"""Where parameters meet data, in any traced function: its layers, and how each scales.

``survey`` finds them. A layer is an equation that mixes parameters with data, such as a product
with a weight, together with the bias that is added to it; ``degrees`` says how its output scales
with each parameter, ``fans`` how many inputs an output sums, ``placing`` where the slices of a leaf
lie that loops hand in one by one.
"""

from jinit.layers.degrees import Degree
from jinit.layers.layer import Layer
from jinit.layers.placing import gathered, leading, placed
from jinit.layers.survey import Survey, survey

__all__ = [
    "Degree",
    "Layer",
    "Survey",
    "gathered",
    "leading",
    "placed",
    "survey",
]
