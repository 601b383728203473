"""Parameters rescaled until signal, gradients and updates flow: measured, on any model."""

from jinit.empirical.calibrate import calibrate, empirical_init
from jinit.empirical.calibration import Calibration
from jinit.empirical.explicit import NormedApply
from jinit.empirical.report import LayerRow, Report
from jinit.empirical.targets import LayerInfo

__all__ = [
    "Calibration",
    "LayerInfo",
    "LayerRow",
    "NormedApply",
    "Report",
    "calibrate",
    "empirical_init",
]
