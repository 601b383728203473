"""What a calibration is compiled for."""

from dataclasses import dataclass
from typing import Any, Literal

import jax

from jinit.empirical.arguments import check_pair
from jinit.empirical.cachekey import CachedFunction
from jinit.empirical.inputs import draw_inputs

__all__ = ["Job", "Mode", "Step"]

Mode = Literal["fold", "explicit"]
Step = Literal["layer", "network"]


@dataclass(frozen=True)
class Job:
    """What a program is compiled for; hashable, so that an equal job compiles once.

    Attributes:
        apply_fn: The model.
        dummy_input: Draws its inputs; None where they are given as arrays.
        dummy_loss: Its loss.
        trainable: For every leaf of the variables whether it is a parameter.
        frozen: For every leaf whether it is left as it is.
        zeros: The leaves that hold nothing but zeros.
        collection: The top-level entry that holds the parameters, or None for the whole tree.
        optimizer: What takes the first step.
        mode: Whether the pillars are folded into parameters and multipliers, or kept apart.
        step: Whether a unit step is one of every layer alone, or of the whole network.
        samples: The number of keys that are averaged over.
        batch_size: What a ``dummy_input`` that asks for a batch size is given.
        target: The RMS of every output, or a function of the layer.
        rngs: The names of the random keys that the model is given by keyword.
        has_aux: Whether the model returns a pair whose first part is the output.
        detailed: Whether the means of outputs are measured, and the gradients of leaves reported.
        modules: The paths of the modules that hold their scales themselves.
    """

    apply_fn: CachedFunction
    dummy_input: CachedFunction | None
    dummy_loss: CachedFunction
    trainable: tuple[bool, ...]
    frozen: tuple[bool, ...]
    zeros: tuple[int, ...] = ()
    collection: str | None = None
    optimizer: Any = "adam"
    mode: Mode = "fold"
    step: Step = "layer"
    samples: int = 8
    batch_size: int = 64
    target: Any = 1.0
    rngs: tuple[str, ...] = ()
    has_aux: bool = False
    detailed: bool = False
    modules: tuple[str, ...] = ()

    def run(self, params: Any, inputs: tuple[Any, ...], rngs: Any) -> Any:
        """Applies the model and returns its output."""
        output = self.apply_fn(params, *inputs, **({"rngs": rngs} if rngs else {}))
        if not self.has_aux:
            return output
        check_pair(output, self.apply_fn)
        return output[0]

    def draw(self, inputs: Any, key: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        """Draws one evaluation's inputs and random keys."""
        source = self.dummy_input if inputs is None else inputs
        keys = jax.random.split(jax.random.fold_in(key, 1), len(self.rngs)) if self.rngs else ()
        return draw_inputs(source, key, self.batch_size), dict(zip(self.rngs, keys, strict=True))
