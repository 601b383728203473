"""Parameters rescaled until signal, gradients and updates flow: measured, on any model."""

from jinit.empirical.calibrate import calibrate, empirical_init
from jinit.empirical.calibration import Calibration
from jinit.empirical.explicit import NormedApply
from jinit.empirical.targets import Site

__all__ = ["Calibration", "NormedApply", "Site", "calibrate", "empirical_init"]
