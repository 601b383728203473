"""What a calibration is asked for: everything that the user passed, checked and resolved once."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import jax

from jinit._kinds import kind_of
from jinit._patterns import check_patterns, fits
from jinit._trees import collection_of, leaf_paths
from jinit.empirical.arguments import (
    check_arguments,
    check_arrays,
    check_counts,
    check_finite,
    check_key,
    check_params,
    zero_leaves,
)
from jinit.empirical.explicit.scale_tree import unscaled, wrapped_modules
from jinit.empirical.optimizers import Optimizer, resolve_optimizer
from jinit.empirical.targets import check_target
from jinit.empirical.user_functions import CachedFunction, check_pair, draw_inputs
from jinit.modules.model import Model, read_model
from jinit.modules.roles import Role, param_mask, parse_roles
from jinit.typing import Key, Mode, Patterns, PyTree, Step

__all__ = ["Problem", "Request", "read_arguments"]


@dataclass(frozen=True)
class Request:
    """What programs are compiled for; hashable, so that an equal request compiles once.

    Attributes:
        apply_fn: The model, as a function of its variables.
        call: The model, as the user calls it.
        dummy_input: Draws its inputs; None where they are given as arrays.
        dummy_loss: Its loss.
        trainable: For every leaf of the variables whether it is a parameter.
        frozen: For every leaf whether the user's patterns leave it as it is.
        zeros: The leaves that hold nothing but zeros.
        collection: The top-level entry that holds the parameters, or None for the whole tree.
        explained: Whether the user said what holds the parameters.
        optimizer: What takes the first step.
        mode: Whether scales are folded into parameters and multipliers, or kept beside.
        step: Whether a unit step is one of every layer alone, or of the whole network.
        samples: The number of keys that are averaged over.
        batch_size: What a ``dummy_input`` that asks for a batch size is given.
        target: The RMS of every output, or a function of the layer.
        rngs: The names of the random keys that the model is given by keyword.
        has_aux: Whether the model returns a pair whose first part is the output.
        detailed: Whether the means of outputs are measured, and the gradients of leaves reported.
        modules: In explicit mode, the paths of the modules that hold their scales themselves.
        scales_inside: Whether explicit mode puts the scales among the variables.
    """

    apply_fn: CachedFunction
    call: CachedFunction
    dummy_input: CachedFunction | None
    dummy_loss: CachedFunction
    trainable: tuple[bool, ...]
    frozen: tuple[bool, ...]
    zeros: tuple[int, ...]
    collection: str | None
    explained: bool
    optimizer: Optimizer
    mode: Mode
    step: Step
    samples: int
    batch_size: int
    target: float | CachedFunction
    rngs: tuple[str, ...]
    has_aux: bool
    detailed: bool
    modules: tuple[str, ...]
    scales_inside: bool

    def apply(self, params: PyTree, inputs: tuple[Any, ...], rngs: Mapping[str, Key]) -> PyTree:
        """Applies the model and returns its output."""
        output = self.apply_fn(params, *inputs, **({"rngs": rngs} if rngs else {}))
        if not self.has_aux:
            return output
        check_pair(output, self.apply_fn)
        return output[0]

    def draw(self, inputs: PyTree, key: Key) -> tuple[tuple[Any, ...], dict[str, Key]]:
        """Draws one evaluation's inputs and random keys."""
        source = self.dummy_input if inputs is None else inputs
        keys = jax.random.split(jax.random.fold_in(key, 1), len(self.rngs)) if self.rngs else ()
        return draw_inputs(source, key, self.batch_size), dict(zip(self.rngs, keys, strict=True))


@dataclass(frozen=True)
class Problem:
    """A request, and the arrays that it is asked of.

    Attributes:
        request: What is asked for.
        model: The model, taken apart; its variables as they were given.
        params: The variables; in explicit mode those of wrapped modules with all scales at 1.
        inputs: The example inputs; None where they are drawn.
        key: The key.
    """

    request: Request
    model: Model
    params: PyTree
    inputs: PyTree
    key: Key


def read_arguments(
    given: Any,
    apply_fn: Any,
    dummy_input: PyTree,
    dummy_loss: Any,
    key: Key | None,
    *,
    samples: int,
    batch_size: int,
    target: float | Callable[..., float],
    include: Patterns,
    exclude: Patterns,
    collection: str | None,
    rngs: str | Sequence[str],
    has_aux: bool,
    roles: Mapping[str | type, Role] | None = None,
    optimizer: Any = "adam",
    mode: Mode = "fold",
    step: Step = "layer",
    detailed: bool = False,
) -> Problem:
    """Checks what the user passed, and divides it into what is compiled for and what is run on.

    Raises:
        ValueError: An argument is not what it should be.
        TypeError: Or not even of that kind.
    """
    apply_fn, dummy_input, dummy_loss = check_arguments(given, apply_fn, dummy_input, dummy_loss)
    key = check_key(key)
    model = read_model(given, apply_fn)
    params = model.variables
    leaves, paths = jax.tree.leaves(params), leaf_paths(params)
    check_arrays(leaves, paths)
    check_params(leaves, paths)
    check_counts(samples=samples, batch_size=batch_size)
    optimizer = resolve_optimizer(optimizer)
    _check_choice("mode", mode, get_args(Mode))
    _check_choice("step", step, get_args(Step))
    if collection is not None and model.is_object:
        raise ValueError(
            f"collection={collection!r} names an entry of a tree of variables, and params is "
            f"{kind_of(given)}; leave it out, say by roles= what its variables are, or by include= "
            "what is tuned"
        )
    explained = collection is not None or bool(roles)
    collection = collection_of(params, collection)
    if not callable(target):
        check_target(target)
    drawn, trainable = callable(dummy_input), param_mask(params, parse_roles(roles), collection)
    if not drawn:
        check_finite(dummy_input)
    modules = tuple(wrapped_modules(params)) if mode == "explicit" else ()
    params = unscaled(params, modules)
    request = Request(
        apply_fn=CachedFunction(model.apply_fn),
        call=CachedFunction(model.call),
        dummy_input=CachedFunction(dummy_input) if drawn else None,
        dummy_loss=CachedFunction(dummy_loss),
        trainable=trainable,
        frozen=_frozen(paths, _listed("include", include), _listed("exclude", exclude)),
        zeros=zero_leaves(leaves, paths, trainable),
        collection=collection,
        explained=explained,
        optimizer=optimizer,
        mode=mode,
        step=step,
        samples=samples,
        batch_size=batch_size,
        target=CachedFunction(target) if callable(target) else float(target),
        rngs=tuple(dict.fromkeys((*(_listed("rngs", rngs) or ()), *model.rngs))),
        has_aux=has_aux,
        detailed=detailed,
        modules=modules,
        scales_inside=model.open and collection == "params",
    )
    return Problem(request, model, params, None if drawn else dummy_input, key)


def _check_choice(name: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name}={value!r} is not known; pass {known[0]!r} or {known[1]!r}")


def _listed(name: str, value: Patterns) -> tuple[str, ...] | None:
    if value is None or isinstance(value, str):
        return None if value is None else (value,)
    listed = tuple(value) if isinstance(value, Iterable) else (value,)
    if not all(isinstance(each, str) for each in listed):
        raise TypeError(f"{name} is {kind_of(value)}; pass a text or a list of texts")
    return listed


def _frozen(
    paths: Sequence[str], include: Sequence[str] | None, exclude: Sequence[str] | None
) -> tuple[bool, ...]:
    """Returns of every leaf whether the patterns leave it out."""
    check_patterns([*(include or ()), *(exclude or ())], paths)
    wanted = [include is None or any(fits(path, p) for p in include) for path in paths]
    left_out = [any(fits(path, p) for p in exclude or ()) for path in paths]
    return tuple(out or not want for want, out in zip(wanted, left_out, strict=True))
