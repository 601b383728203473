"""Some leaves of a tree drawn anew, chosen by their paths."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jinit._kinds import is_key, kind_of
from jinit._patterns import check_patterns, fits
from jinit._trees import leaf_paths
from jinit.initializers.base import Initializer, Sharding
from jinit.initializers.compose import AnyInitializer, as_initializer
from jinit.modules.model import read_model

__all__ = ["reinit"]

T = TypeVar("T")


class _Leaf(NamedTuple):
    """A leaf of the tree and what becomes of it.

    Attributes:
        path: Where it is.
        value: The array.
        init: What draws it anew; None leaves it alone.
    """

    path: str
    value: Any
    init: Initializer | None


def reinit(key: jax.Array, params: T, initializers: Mapping[str, AnyInitializer]) -> T:
    """Draws the leaves anew whose paths match a pattern, and leaves the others alone.

    A path is the keys joined by ``/``, such as ``params/Dense_0/kernel``; the ``value`` of a box
    such as ``nn.Partitioned`` or ``nnx.Param`` is no part of it. A pattern is one of ``fnmatch``,
    and fits the whole path: ``*`` is any text, ``/`` included, ``?`` one character, ``[ab]`` one
    of some. Where several patterns fit, the last one counts: write the general ones first. Each
    leaf has its own key, which depends on ``key`` and the path alone, so a leaf keeps its values
    when others come and go.

    Args:
        key: A typed or legacy JAX key.
        params: A tree of arrays: params, Linen variables, an NNX state; or an NNX module, an
            Equinox module or a bound Linen module.
        initializers: Any initializers by pattern, of jinit or functions ``(key, shape, dtype)``.

    Returns:
        The tree with the same structure, boxes, shapes, dtypes and shardings, or a new module.
        The other leaves are the same objects. It can be called within jit and by
        ``jax.eval_shape``.

    Raises:
        ValueError: If a pattern fits no leaf, with the nearest paths, or an initializer cannot
            draw a leaf that it was given; all of them are listed.
        TypeError: If the key is not one, or the initializers are not given by pattern.

    Example:
        >>> from jinit.initializers import constant, zeros
        >>> params = {"a": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
        >>> reinit(jax.random.key(0), params, {"*": zeros(), "*/bias": constant(0.5)})["a"]
        {'bias': Array([0.5, 0.5], dtype=float32), 'kernel': Array([[0., 0.],
               [0., 0.]], dtype=float32)}
    """
    _check_arguments(key, initializers)
    patterns = {pattern: as_initializer(init) for pattern, init in initializers.items()}
    model = read_model(params)
    values, structure = jax.tree.flatten(model.variables)
    paths = leaf_paths(model.variables)
    check_patterns(patterns, paths)
    leaves = [
        _Leaf(path, value, _last_match(path, patterns))
        for path, value in zip(paths, values, strict=True)
    ]
    _check_leaves(key, leaves)
    return model.restore(jax.tree.unflatten(structure, [_drawn(key, leaf) for leaf in leaves]))


def _check_arguments(key: Any, initializers: Any) -> None:
    order = "the order is key, params, initializers"
    if not is_key(key):
        raise TypeError(f"key must be one such as jax.random.key(0), got {kind_of(key)}; {order}")
    if not isinstance(initializers, Mapping) or not all(isinstance(p, str) for p in initializers):
        raise TypeError(
            "initializers must be a dict by pattern, such as {'*/bias': zeros()}, got "
            f"{kind_of(initializers)}; {order}"
        )


def _last_match(path: str, patterns: Mapping[str, Initializer]) -> Initializer | None:
    fitting = [init for pattern, init in patterns.items() if fits(path, pattern)]
    return fitting[-1] if fitting else None


def _check_leaves(key: Any, leaves: Iterable[_Leaf]) -> None:
    wrong = []
    for leaf in leaves:
        if leaf.init is not None:
            try:
                shape, dtype = _shape_and_dtype(leaf.value)
                leaf.init.resolve(shape, dtype).check(key, shape, dtype)
            except (TypeError, ValueError) as error:
                wrong.append(f"{leaf.path}: {error}")
    if wrong:
        raise ValueError("leaves that cannot be drawn:\n  " + "\n  ".join(wrong))


def _shape_and_dtype(value: Any) -> tuple[tuple[int, ...], jnp.dtype]:
    dtype = getattr(value, "dtype", None)
    if dtype is None or jnp.issubdtype(dtype, jax.dtypes.extended):
        shown = type(value).__name__ if dtype is None else dtype
        raise TypeError(f"it is not an array of numbers but {shown}; narrow the pattern")
    return jnp.shape(value), jnp.dtype(dtype)


def _drawn(key: jax.Array, leaf: _Leaf) -> Any:
    if leaf.init is None:
        return leaf.value
    shape, dtype, sharding = jnp.shape(leaf.value), jnp.result_type(leaf.value), _sharding(leaf)
    if sharding is None or isinstance(sharding, Sharding):
        return leaf.init(_leaf_key(key, leaf.path), shape, dtype, sharding)
    return jax.device_put(leaf.init(_leaf_key(key, leaf.path), shape, dtype), sharding)


def _leaf_key(key: jax.Array, path: str) -> jax.Array:
    digest = hashlib.blake2b(path.encode(), digest_size=8).digest()
    for part in (digest[:4], digest[4:]):
        key = jax.random.fold_in(key, int.from_bytes(part, "big"))
    return key


def _sharding(leaf: _Leaf) -> Any:
    """Returns where a leaf is; None where that was nobody's decision."""
    if isinstance(leaf.value, Tracer):
        typed = jax.typeof(leaf.value).sharding
        return typed.spec if typed.mesh.explicit_axes else None
    if isinstance(leaf.value, jax.Array) and not leaf.value.committed:
        return None
    return getattr(leaf.value, "sharding", None)
