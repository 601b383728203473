"""One model measured over many keys, in the compiled passes or inside a traced program."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jinit._progress import Progress
from jinit.empirical.measuring.factors import Factors
from jinit.empirical.measuring.passes import Measured, Stage, Statistics, passes_for, rescale, stack
from jinit.empirical.measuring.rounding import is_rounding
from jinit.empirical.request import Problem
from jinit.empirical.traced_model import traced_model
from jinit.tracing import is_tracing

__all__ = ["Measurement", "single"]


class _Series(NamedTuple):
    """A measurement on keys of its own.

    Attributes:
        number: Its place among the three, by which its keys are told from the others'.
        what: What it says that it does.
        keys: Of the samples asked for, how many keys it takes, at least 1.
    """

    number: int
    what: str
    keys: Callable[[int], int]


# one pass more, on a key that is repeated, comes off what is only shown
_BEFORE = _Series(1, "measuring as given", lambda samples: samples // 4 - 1)
_DECISIVE = _Series(2, "measuring what scales follow from", lambda samples: samples)
_AFTER = _Series(3, "measuring the result", lambda samples: samples // 2)


class Measurement:
    """Measures one model.

    Args:
        problem: The model, its parameters and inputs.
        progress: What is told of every pass.

    Attributes:
        model: The traced model.
    """

    def __init__(self, problem: Problem, progress: Progress) -> None:
        self.model, self._consts = traced_model(problem)
        self._inputs, self._key, self._progress = problem.inputs, problem.key, progress
        leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(problem.params)]
        self._stacked = stack(self.model, leaves) if self.model.rolled.loops else leaves
        self._traced = is_tracing()
        self._passes = passes_for(leaves, traced=self._traced)

    def forward(self, output_scale: Factors) -> Any:
        """Runs forward once a key, on the same keys at every call.

        Args:
            output_scale: The factor of every output; one a statistic.

        Returns:
            The RMS of every output before its factor, of shape (keys, statistics).
        """
        keys = np.arange(self.model.request.samples)
        factors = self.model.layout.by_layer(_singles(output_scale))

        def one(number: Any, nudge: Any) -> Any:
            del nudge
            return self._passes.forward(
                self.model, self._consts, self._stacked, self._inputs, self._key, number, factors
            )

        return self._over_keys("scaling", one, keys, np.zeros(len(keys)))

    def before(self) -> Statistics:
        """Measures the parameters as they were given."""
        return self._measure(_BEFORE, None).statistics

    def gradients(self, scale: Any, gradient_scale: Factors, **factors: Any) -> Any:
        """Measures, on the keys of ``decisive``, the RMS of gradients before their factors."""
        found = self._measure(_DECISIVE, scale, gradient_scale=gradient_scale, **factors)
        return found.statistics.gradient

    def decisive(self, scale: Any, **factors: Any) -> tuple[Measured, Any]:
        """Measures what the scales are found from.

        Args:
            scale: What each slot of a leaf is multiplied by; None for the leaves as given.
            **factors: Those of ``Stage`` that are not 1 throughout.

        Returns:
            That, and of every slot whether its gradient is rounding, or 0 on all keys.
        """
        unit = self.model.rounding_unit
        found = self._measure(_DECISIVE, scale, unit, **factors)
        null = is_rounding(found.sketch[0], found.sketch[-1], unit)
        found = jax.tree.map(lambda x: x[:-1], found)
        # on one key alone, a branch may not be taken
        return found, null | (found.statistics.leaf_gradient == 0).all(0)

    def after(self, scale: Any, **factors: Any) -> Measured:
        """Measures the result, on keys used for nothing else."""
        return self._measure(_AFTER, scale, **factors)

    def _measure(self, series: _Series, scale: Any, nudge: float = 0.0, **factors: Any) -> Measured:
        """Measures once a key.

        Args:
            series: Which keys.
            scale: What each slot of a leaf is multiplied by; None for the leaves as given.
            nudge: Where it is not 0, the first key is measured once more at the end, with every
                parameter changed by this part of it.
            **factors: Those of ``Stage`` that are not 1 throughout.
        """
        leaves, stage = self._leaves(scale), self._stage(**factors)

        def one(number: Any, nudge: Any) -> Any:
            return self._passes.measure(
                self.model, self._consts, leaves, self._inputs, self._key, number, nudge, stage
            )

        samples = self.model.request.samples
        keys = series.number * samples + np.arange(max(1, series.keys(samples)))
        nudges = np.zeros(len(keys))
        if nudge:
            keys, nudges = np.append(keys, keys[0]), np.append(nudges, nudge)
        return self._over_keys(series.what, one, keys, nudges)

    def _leaves(self, scale: Any) -> list[Any]:
        """Returns the stacked leaves, each slot multiplied by its scale; None leaves them be."""
        if scale is None:
            return self._stacked
        return rescale(self._stacked, self.model.layout.leaves(single(scale)))

    def _stage(
        self,
        output_scale: Factors | None = None,
        gradient_scale: Factors | None = None,
        parameter_scale: Factors | None = None,
        leaf_gradient_scale: Any = None,
        multiplier: Any = None,
    ) -> Stage:
        """Divides factors among the layers and the leaves; what is not given is 1."""
        layout = self.model.layout
        layers, slots = np.ones(layout.size), np.ones(layout.slots)
        by_layer = [
            layout.by_layer(_singles(Factors.given(layers) if given is None else given))
            for given in (output_scale, gradient_scale)
        ]
        scale = Factors.given(slots) if parameter_scale is None else parameter_scale
        by_leaf = [
            layout.leaves(single(slots if given is None else given))
            for given in (leaf_gradient_scale, multiplier)
        ]
        return Stage(
            output_scale=by_layer[0],
            gradient_scale=by_layer[1],
            parameter_scale=layout.by_leaf(_singles(scale)),
            leaf_gradient_scale=by_leaf[0],
            multiplier=by_leaf[1],
        )

    def _over_keys(self, what: str, one: Any, numbers: np.ndarray, nudges: np.ndarray) -> Any:
        """Runs a program once a key, one after the other, and stacks what it returns."""
        self._progress.begin(what, len(numbers))
        passes = numbers.astype(np.int32), nudges.astype(np.float32)
        if self._traced:
            return jax.lax.map(lambda one_pass: one(*one_pass), jax.tree.map(jnp.asarray, passes))
        results = [self._counted(one, *one_pass) for one_pass in zip(*passes, strict=True)]
        return jax.tree.map(lambda *xs: np.stack(xs), *jax.device_get(results))

    def _counted(self, one: Any, number: Any, nudge: Any) -> Any:
        result = one(number, nudge)
        self._progress.advance(result)
        return result


def _singles(factors: Factors) -> Factors:
    return Factors(single(factors.value), factors.own)


def single(vector: Any) -> Any:
    """Returns numbers in float32."""
    with np.errstate(over="ignore", under="ignore"):  # what is out of range is refused at the end
        return vector.astype(np.float32)
