"""Defaults of other systems for Flax's layers, as tables that can be read, printed and extended."""

from jinit.defaults.functions import global_keras_initializers, keras_defaults, torch_defaults
from jinit.defaults.layer_defaults import LayerDefaults
from jinit.defaults.lost_at_apply import LostAtApplyWarning
from jinit.defaults.tables.layer_table import Derived, LayerTable, Row
from jinit.defaults.tables.systems import register
from jinit.defaults.undo import Undo

__all__ = [
    "Derived",
    "LayerDefaults",
    "LayerTable",
    "LostAtApplyWarning",
    "Row",
    "Undo",
    "global_keras_initializers",
    "keras_defaults",
    "register",
    "torch_defaults",
]
