"""Empirical initialization: measure a model, rescale its parameters until signals are O(1)."""

from jinit.empirical.calibrate import Calibration, calibrate, empirical_init
from jinit.empirical.report import LayerRow, Report

__all__ = ["Calibration", "LayerRow", "Report", "calibrate", "empirical_init"]
