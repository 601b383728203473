"""Explicit mode: scales beside the parameters, as a function and as linen modules."""
