"""Initialization by the few programs that a model's repeats, sharded at birth."""

from jinit.fastinit.counting import Count, ModuleCount
from jinit.fastinit.fast_init import FastInit, count, fast_init
from jinit.fastinit.report import InitReport, Made

__all__ = ["Count", "FastInit", "InitReport", "Made", "ModuleCount", "count", "fast_init"]
