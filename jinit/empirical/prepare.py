"""Checks what the user passed, and divides it into what is compiled for and what is run on."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jinit._arithmetic import is_float, on_cpu
from jinit._kinds import kind_of
from jinit._patterns import check_patterns, fits
from jinit._trees import collection_of, leaf_paths, param_mask
from jinit.empirical.arguments import check_arguments, check_arrays, check_key
from jinit.empirical.cachekey import CachedFunction
from jinit.empirical.inputs import (
    check_counts,
    check_params,
)
from jinit.empirical.job import Job, Mode, Step
from jinit.empirical.optimizers import check_optimizer
from jinit.empirical.targets import check_target

__all__ = ["Patterns", "prepare"]

Patterns = str | Sequence[str] | None
"""One pattern over the leaves' paths or several; ``*`` is any text, ``/`` included."""


def prepare(
    params: Any,
    apply_fn: Callable[..., Any],
    dummy_input: Any,
    dummy_loss: Callable[..., Any],
    key: jax.Array | None,
    *,
    collection: str | None,
    include: Patterns,
    exclude: Patterns,
    rngs: str | Sequence[str],
    target: Any,
    **options: Any,
) -> tuple[Job, Any, jax.Array]:
    """Returns the job, the example inputs (None where they are drawn) and the key.

    Raises:
        ValueError: An argument is not what it should be.
        TypeError: Or not even of that kind.
    """
    check_arguments(params, apply_fn, dummy_input, dummy_loss)
    key = check_key(key)
    leaves, paths = jax.tree.leaves(params), leaf_paths(params)
    check_arrays(leaves, paths)
    check_params(leaves, paths)
    _check_options(options)
    collection = _check_collection(params, collection)
    if not callable(target):
        check_target(target)
    drawn, trainable = callable(dummy_input), param_mask(params, collection)
    if not drawn:
        _check_inputs(dummy_input)
    job = Job(
        apply_fn=CachedFunction(apply_fn),
        dummy_input=CachedFunction(dummy_input) if drawn else None,
        dummy_loss=CachedFunction(dummy_loss),
        trainable=trainable,
        frozen=_frozen(paths, _listed("include", include), _listed("exclude", exclude)),
        zeros=_zeros(leaves, paths, trainable),
        collection=collection,
        target=CachedFunction(target) if callable(target) else float(target),
        rngs=_listed("rngs", rngs) or (),
        **options,
    )
    return job, None if drawn else dummy_input, key


def _check_options(options: Mapping[str, Any]) -> None:
    check_counts(**{name: options[name] for name in ("samples", "batch_size")})
    if "optimizer" in options:
        check_optimizer(options["optimizer"])
    for name, known in (("mode", get_args(Mode)), ("step", get_args(Step))):
        if options.get(name, known[0]) not in known:
            raise ValueError(
                f"{name}={options[name]!r} is not known; pass {known[0]!r} or {known[1]!r}"
            )


def _check_collection(params: Any, collection: str | None) -> str | None:
    if collection is None:
        return collection_of(params)
    if not isinstance(params, Mapping) or collection not in params:
        found = ", ".join(map(repr, params)) if isinstance(params, Mapping) else type(params)
        raise ValueError(
            f"collection={collection!r} is no top-level entry of params, which has {found}"
        )
    return collection


def _listed(name: str, value: str | Sequence[str] | None) -> tuple[str, ...] | None:
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


def _zeros(
    leaves: Sequence[Any], paths: Sequence[str], trainable: Sequence[bool]
) -> tuple[int, ...]:
    """Lists the leaves that hold nothing but zeros; traced values are not looked at.

    Raises:
        ValueError: A parameter is not finite. A mask among the constants need not be.
    """
    known = {
        number: leaf
        for number, leaf in enumerate(leaves)
        if is_float(leaf) and np.size(leaf) and not isinstance(leaf, Tracer)
    }
    seen = _seen(known)
    bad: list[str] = [paths[n] for n, (finite, _) in seen.items() if trainable[n] and not finite]
    if bad:
        raise ValueError(
            f"params holds values that are not finite at {', '.join(bad)}; "
            "draw these parameters again before they are measured"
        )
    return tuple(number for number, (_, nonzero) in seen.items() if not nonzero)


def _check_inputs(inputs: Any) -> None:
    leaves = enumerate(jax.tree.leaves(inputs))
    known = {n: leaf for n, leaf in leaves if is_float(leaf) and not isinstance(leaf, Tracer)}
    if not all(finite for finite, _ in _seen(known).values()):
        raise ValueError("dummy_input holds values that are not finite; pass inputs without them")


def _seen(leaves: dict[int, Any]) -> dict[int, Any]:
    """Looks at leaves where they are, of which one process may not hold all."""
    return jax.device_get((_look if on_cpu(leaves.values()) else _looked)(leaves))


def _look(leaves: dict[int, Any]) -> dict[int, tuple[Any, Any]]:
    """Returns of every leaf whether all of it is finite, and whether any of it is not zero."""
    found = {}
    for number, leaf in leaves.items():
        xp = jnp if isinstance(leaf, Tracer) else np
        array = xp.asarray(leaf)
        found[number] = xp.isfinite(array).all(), (array != 0).any()
    return found


_looked = jax.jit(_look)
