"""Independent references: apex's scaler in Python numbers, and a reader of jaxprs."""

import collections
import dataclasses

import jax
import numpy as np


@dataclasses.dataclass
class ApexScaler:
    """The arithmetic of apex's LossScaler and update_scale_hysteresis on Python floats."""

    scale: float
    dynamic: bool = True
    factor: float = 2.0
    window: int = 2000
    minimum: float | None = None
    maximum: float = 2.0**24
    hysteresis: int = 1
    unskipped: int = 0
    left: int | None = None

    def step(self, overflow):
        skip = overflow and self.dynamic
        left = self.hysteresis if self.left is None else self.left
        self.left = left - 1 if overflow else self.hysteresis
        if skip:
            if self.left <= 0:
                self.scale /= self.factor
            if self.minimum:
                self.scale = max(self.minimum, self.scale)
            self.unskipped = 0
        else:
            self.unskipped += 1
        if self.unskipped == self.window and self.dynamic:
            self.scale = min(self.maximum, self.scale * self.factor)
            self.unskipped = 0
        return skip


def operand_dtypes(function, *args):
    """Counts the dtypes of the first operand of every equation: {primitive: {dtype: count}}."""
    counts = collections.defaultdict(collections.Counter)
    _visit(jax.make_jaxpr(function)(*args).jaxpr, counts)
    return {name: dict(dtypes) for name, dtypes in counts.items()}


def _visit(jaxpr, counts):
    for eqn in jaxpr.eqns:
        if eqn.invars:
            counts[eqn.primitive.name][str(eqn.invars[0].aval.dtype)] += 1
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                _visit(getattr(value, "jaxpr", value), counts)


def _is_jaxpr(value):
    return hasattr(value, "eqns")


def bits(tree):
    """The bytes of every leaf: equal for bitwise equal trees only."""
    return [(np.asarray(leaf).dtype, np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(tree)]


def dtypes(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}
