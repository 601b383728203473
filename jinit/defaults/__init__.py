"""Defaults of other systems for Flax's layers, as tables that can be read and printed."""

from jinit.defaults.layer_defaults import LayerDefaults, keras_defaults

__all__ = ["LayerDefaults", "keras_defaults"]
