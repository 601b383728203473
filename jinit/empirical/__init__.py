"""Parameters rescaled until signal, gradients and updates flow: measured, on any model."""

from jinit.empirical.calibrate import calibrate, empirical_init
from jinit.empirical.calibration import Calibration
from jinit.empirical.explicit import NormedApply
from jinit.empirical.report import LayerRow, Report
from jinit.empirical.targets import Site

__all__ = [
    "Calibration",
    "LayerRow",
    "NormedApply",
    "Report",
    "Site",
    "calibrate",
    "empirical_init",
]
