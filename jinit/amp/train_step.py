"""One call for a training step at a level: scaled loss, true gradients, update, kept state."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import optax
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding

from jinit._trees import collection_of, leaf_paths
from jinit.amp.arguments import check_function, check_optimizer, shown
from jinit.amp.scaling.differentiate import combined, is_trained
from jinit.amp.scaling.finite_state import where_finite
from jinit.amp.scaling.scaled_gradients import value_and_grad
from jinit.modules.kinds import is_framework_type, is_nnx_module
from jinit.tracing import ARRAYS, Static, partition

__all__ = ["train_step"]


def train_step(
    loss_fn: Callable[..., Any], tx: optax.GradientTransformation | None = None
) -> Callable[..., Any]:
    """Returns a compiled training step of a loss and an optimizer.

    It scales the loss, differentiates it, divides the gradients by the scale, updates, and where
    a gradient is not finite and the step is skipped keeps the state beside the parameters too::

        variables, opt_state, loss = step(variables, opt_state, *batch)      linen, Equinox, plain
        loss = step(model, optimizer, *batch)                                NNX, in place

    Args:
        loss_fn: ``loss_fn(variables, *batch)`` returns a scalar, float32 or wider. Of Flax
            variables that hold more collections than ``params`` it returns ``(loss, updated)``,
            with the updated collections as ``apply(..., mutable=[...])`` returns them. Haiku's
            parameters and state are such: ``{"params": params, "state": state}``.
        tx: What ``amp.initialize`` or ``amp.loss_scaling`` returned. None with NNX, where the
            ``nnx.Optimizer`` holds it.

    Returns:
        The step. Of Flax variables ``opt_state`` is ``tx.init(variables["params"])``, of an Equinox
        module ``tx.init(eqx.filter(model, eqx.is_inexact_array))``, of any other tree
        ``tx.init(variables)``.

    Raises:
        TypeError: ``loss_fn`` is not a function, or ``tx`` not an optimizer; when it is called,
            if ``tx`` is missing.

    Example:
        >>> import jax.numpy as jnp
        >>> from jinit import amp
        >>> apply_fn, tx = amp.initialize(lambda p, x: x @ p, optax.sgd(0.5), "O2")
        >>> step = amp.train_step(lambda p, x: (apply_fn(p, x) ** 2).mean() / 2, tx)
        >>> params = jnp.ones((1, 1))
        >>> opt_state = tx.init(params)
        >>> for _ in range(2):
        ...     params, opt_state, loss = step(params, opt_state, jnp.ones((4, 1)))
        >>> print(params, loss)
        [[0.25]] 0.125
    """
    check_function("train_step", loss_fn)
    if tx is not None:
        check_optimizer(tx)
    compiled = functools.lru_cache(maxsize=64)(functools.partial(_compiled, loss_fn, tx))
    of_nnx: list[Callable[..., Any]] = []  # made at its first call: NNX may never be imported

    def step(variables: Any, opt_state: Any, *batch: Any) -> Any:
        if is_nnx_module(variables):
            _check_nnx_optimizer(opt_state)
            if not of_nnx:
                of_nnx.append(_nnx_step(loss_fn))
            return of_nnx[0](variables, opt_state, *batch)
        if tx is None:
            raise TypeError(
                f"train_step was given no optimizer, which {shown(variables)} needs: write "
                "amp.train_step(loss_fn, tx)"
            )
        kept, state = partition((variables, opt_state))
        program = compiled(tuple(map(_auto_sharding, state)))
        values, loss = program(*partition((variables, opt_state, batch)))
        return *kept.fill(values), loss

    return step


def _check_nnx_optimizer(optimizer: Any) -> None:
    """Raises TypeError for what is no optimizer of NNX."""
    if not is_framework_type(optimizer, "flax.nnx", "Optimizer"):
        raise TypeError(
            "the step of an NNX module is called as step(model, optimizer, *batch), where the "
            f"optimizer is {shown(optimizer)}: pass nnx.Optimizer(model, tx, wrt=nnx.Param)"
        )


def _nnx_step(loss_fn: Callable[..., Any]) -> Callable[..., Any]:
    from flax import nnx

    @nnx.jit
    def step(model: Any, optimizer: Any, *batch: Any) -> jax.Array:
        loss, grads = value_and_grad(loss_fn, optimizer)(model, *batch)
        optimizer.update(model, grads)
        return loss

    return step


def _auto_sharding(array: Any) -> NamedSharding | None:
    """Returns how an array is laid along the axes of a mesh, where XLA might lay it anew."""
    sharding = None if isinstance(array, Tracer) else getattr(array, "sharding", None)
    if not isinstance(sharding, NamedSharding) or sharding.mesh.size == 1:
        return None
    return None if AxisType.Explicit in sharding.mesh.axis_types else sharding


def _compiled(
    loss_fn: Callable[..., Any], tx: Any, shardings: tuple[NamedSharding | None, ...]
) -> Callable[..., Any]:
    """Compiles the step such that what it returns lies where it lay, or it would compile anew."""
    step = functools.partial(_step, loss_fn, tx)
    free = all(sharding is None for sharding in shardings)
    where = None if free else ([*shardings], None)
    return jax.jit(step, static_argnums=0, out_shardings=where)


def _step(
    loss_fn: Callable[..., Any], tx: Any, static: Static, values: list[Any]
) -> tuple[list[Any], jax.Array]:
    """Takes a step from arguments that were divided, and divides what comes of it alike."""
    variables, opt_state, batch = static.fill(values)
    collections = collection_of(variables) is not None
    whole = variables["params"] if collections else variables
    updated: dict[str, Any] = {}
    if collections:
        of_params = functools.partial(_of_params, loss_fn, variables)
        differentiate = value_and_grad(of_params, opt_state, has_aux=True)
        (loss, updated), grads = differentiate(whole, *batch)
    else:
        _check_trained(whole)
        loss, grads = value_and_grad(loss_fn, opt_state)(whole, *batch)
    trained = jax.tree.map(lambda x: x if is_trained(x) else None, whole)
    with _explaining_state():
        updates, opt_state = tx.update(grads, opt_state, trained)
    whole = combined(optax.apply_updates(trained, updates), whole)
    if not collections:
        return partition((whole, opt_state))[1], loss
    kept = where_finite(grads, updated, {name: variables[name] for name in updated})
    return partition((_with(variables, **kept, params=whole), opt_state))[1], loss


def _check_trained(variables: Any) -> None:
    """Raises TypeError for a tree of arrays of which some are no parameters."""
    leaves, paths = jax.tree.leaves(variables), leaf_paths(variables)
    fixed = [
        f"{path} ({x.dtype})"
        for path, x in zip(paths, leaves, strict=True)
        if isinstance(x, ARRAYS) and not is_trained(x)
    ]
    if fixed and all(isinstance(x, ARRAYS) for x in leaves):  # with others it is a module's
        raise TypeError(
            "a step trains all variables but for collections beside params, and not a float is "
            f"{', '.join(fixed)}: hand Haiku's state over as a collection, "
            '{"params": params, "state": state}, and let loss_fn return (loss, {"state": state})'
        )


@contextlib.contextmanager
def _explaining_state() -> Iterator[None]:
    """Notes, where an update fails, what the optimizer's state is to be made of."""
    try:
        yield
    except Exception as error:
        error.add_note(
            "opt_state may be of another tree than what is trained: of Flax variables it is "
            'tx.init(variables["params"]), of an Equinox module '
            "tx.init(eqx.filter(model, eqx.is_inexact_array)), of another tree tx.init(variables)"
        )
        raise


def _of_params(
    loss_fn: Callable[..., Any], variables: Mapping[str, Any], params: Any, *batch: Any
) -> tuple[Any, dict[str, Any]]:
    """Returns the loss as a function of one collection, and the collections that moved."""
    returned = loss_fn(_with(variables, params=params), *batch)
    if not isinstance(returned, tuple):
        return returned, {}
    loss, updated = returned
    new = sorted(set(updated) - set(variables))
    if new:
        raise ValueError(
            f"loss_fn returned the collections {', '.join(new)}, which the variables do not have: "
            "leave them out, or pass variables that model.init returned with them"
        )
    return loss, dict(updated)


def _with(variables: Any, **collections: Any) -> Any:
    """Returns variables, a dict or a FrozenDict, with some collections replaced."""
    return type(variables)({**variables, **collections})
