"""Parameters rescaled until signal, gradients and updates flow: measured, on any model."""

import importlib
from typing import TYPE_CHECKING

from jinit.empirical.calibrate import calibrate, empirical_init
from jinit.empirical.explicit.normed_apply import NormedApply
from jinit.empirical.results.calibration import Calibration
from jinit.empirical.results.report import LayerRow, Report
from jinit.empirical.targets import LayerInfo

if TYPE_CHECKING:
    from jinit.empirical.explicit.normed import (
        Normed,
        get_wrapped_submodules,
        wrap_all_leaf_modules,
    )

__all__ = [
    "Calibration",
    "LayerInfo",
    "LayerRow",
    "Normed",
    "NormedApply",
    "Report",
    "calibrate",
    "empirical_init",
    "get_wrapped_submodules",
    "wrap_all_leaf_modules",
]


def __getattr__(name: str) -> object:
    # they are linen modules: Flax is imported where they are used
    if name in ("Normed", "get_wrapped_submodules", "wrap_all_leaf_modules"):
        return getattr(importlib.import_module("jinit.empirical.explicit.normed"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
