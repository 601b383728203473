"""From a loss to its true gradients: scale, differentiate, unscale, and note what overflowed."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import optax

from jinit._known import known_arguments
from jinit.amp.arguments import (
    check_aux,
    check_function,
    check_grads,
    check_loss,
    check_opt_state,
    shown,
)
from jinit.amp.scaling.differentiate import differentiated
from jinit.modules.kinds import is_framework_type, is_nnx_variable
from jinit.modules.nnx_state import carried_state, keep_where
from jinit.typing import PyTree

if TYPE_CHECKING:
    from flax import nnx

__all__ = [
    "UnscaledGrads",
    "all_finite",
    "check_loss_id",
    "find_scale",
    "map_inexact",
    "marked_again",
    "scale_loss",
    "unscale",
    "value_and_grad",
]

P = ParamSpec("P")
R = TypeVar("R")
OptState: TypeAlias = "optax.OptState | nnx.Optimizer"

_OUTSIDE = {
    "ApplyIfFiniteState": "optax.apply_if_finite",
    "MultiStepsState": "optax.MultiSteps",
}
_AS = {"optax.apply_if_finite": "", "optax.MultiSteps": ".gradient_transformation()"}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class UnscaledGrads:
    """Holds true gradients, and of every loss that they come from whether it overflowed.

    It is handed to an optimizer of ``loss_scaling`` in place of gradients, which then does not
    unscale them again. Gradients of several losses are added with ``+``, part of them is taken
    with ``[]``. It is a pytree whose marks may be treated as gradients are: summed, averaged,
    reduced over devices or multiplied by a positive number, they stay 0 or do not.

    Args:
        grads: A tree of float32 (or wider) gradients.
        overflow: For every loss, by its ``loss_id``, a float32 mark of shape (): 0 if all its
            gradients were finite.

    Example:
        >>> first = UnscaledGrads({"w": jnp.ones(2), "b": jnp.ones(1)}, {0: jnp.float32(0)})
        >>> second = UnscaledGrads({"w": jnp.ones(2), "b": jnp.ones(1)}, {1: jnp.float32(1)})
        >>> total = first + second
        >>> total["w"].grads.tolist(), sorted(total["w"].overflow)
        ([2.0, 2.0], [0, 1])
    """

    grads: PyTree
    overflow: dict[int, jax.Array]

    def __add__(self, other: Any) -> "UnscaledGrads":
        """Adds gradients leaf by leaf; the sum comes from the losses of both."""
        if not isinstance(other, UnscaledGrads):
            return NotImplemented
        grads = jax.tree.map(jnp.add, self.grads, other.grads)
        overflow = dict(self.overflow)
        for loss_id, mark in other.overflow.items():
            overflow[loss_id] = overflow.get(loss_id, 0) + mark
        return UnscaledGrads(grads, overflow)

    def __getitem__(self, key: Any) -> "UnscaledGrads":
        """Takes part of the gradients; it still comes from the same losses."""
        return UnscaledGrads(self.grads[key], self.overflow)

    def __contains__(self, key: Any) -> bool:
        """Returns whether the gradients have such a part, as Flax's ``TrainState`` asks."""
        return key in self.grads

    @property
    def finite(self) -> jax.Array:
        """Bool of shape (), whether no loss overflowed."""
        marks = [jnp.asarray(mark) == 0 for mark in self.overflow.values()]
        return jnp.stack([jnp.asarray(True), *marks]).all()


@known_arguments
def scale_loss(loss: jax.typing.ArrayLike, opt_state: OptState, loss_id: int = 0) -> jax.Array:
    """Multiplies a loss by its scale in the optimizer's state.

    Differentiate the product. An optimizer with one loss takes its gradients as they are; for
    one with several, ``unscale`` them first (``value_and_grad`` does all of it).

    Args:
        loss: A scalar, float32 or wider.
        opt_state: The state of one optimizer that ``initialize`` or ``loss_scaling`` returned,
            alone or inside ``optax.chain``.
        loss_id: Which of the optimizer's ``num_losses`` losses.

    Returns:
        ``loss * loss_scale``, a float32 (or wider) scalar.

    Raises:
        TypeError: If the loss is not an array or number, or ``opt_state`` is an optimizer or
            anything else that is not a state.
        ValueError: If the loss is not a float32 scalar, the state does not hold exactly one
            loss scale, or there is no such loss.

    Example:
        >>> from jinit import amp
        >>> state = amp.loss_scaling(optax.sgd(0.1), 128.0).init(jnp.ones(2))
        >>> scale_loss(jnp.float32(0.5), state)
        Array(64., dtype=float32)

    Source:
        NVIDIA apex's ``amp.scale_loss``, a context manager there.
    """
    check_loss(loss)
    dtype, shape = jnp.result_type(loss), jnp.shape(loss)
    wide = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits >= 32
    if shape != () or not wide:
        raise ValueError(
            f"a loss must be a float32 scalar, not {dtype} of shape {shape}: average it, and "
            "cast the model's outputs to float32 before the loss is computed"
        )
    loss = jnp.asarray(loss)
    return loss * _scale_of(opt_state, loss_id).astype(loss.dtype)


@known_arguments
def unscale(grads: PyTree, opt_state: OptState, loss_id: int = 0) -> UnscaledGrads:
    """Divides gradients of a scaled loss by its scale, and marks whether they overflowed.

    Args:
        grads: A tree of gradients of ``scale_loss(loss, opt_state, loss_id)``, in any dtype.
        opt_state: The state by which the loss was scaled.
        loss_id: Which of the optimizer's losses it was.

    Returns:
        ``UnscaledGrads`` in float32 (or wider).

    Raises:
        TypeError: If the gradients are or hold ``UnscaledGrads``, or what is not an array, or
            ``opt_state`` is not a state.
        ValueError: If the state does not hold exactly one loss scale, or there is no such loss;
            or loss scaling is inside ``optax.apply_if_finite`` or ``optax.MultiSteps``.

    Example:
        >>> from jinit import amp
        >>> state = amp.loss_scaling(optax.sgd(0.1), 128.0).init(jnp.ones(2))
        >>> loss_fn = lambda params: scale_loss(params.astype(jnp.float32).sum(), state)
        >>> grads = jax.grad(loss_fn)(jnp.ones(2, jnp.float16))
        >>> unscale(grads, state)
        UnscaledGrads(grads=Array([1., 1.], dtype=float32), overflow={0: Array(0., dtype=float32)})
    """
    if isinstance(grads, UnscaledGrads):
        raise TypeError("the gradients are unscaled already: hand them to the optimizer")
    check_grads(grads, UnscaledGrads)
    _check_outermost(opt_state)
    # By the reciprocal, which compilers fuse into every reader, where they keep a quotient.
    factor = 1.0 / _scale_of(opt_state, loss_id)
    true = map_inexact(lambda grad: grad * factor.astype(grad.dtype), grads)
    return UnscaledGrads(true, {int(loss_id): 1.0 - all_finite(true).astype(jnp.float32)})


@known_arguments
def value_and_grad(
    loss_fn: Callable[P, R],
    opt_state: OptState,
    loss_id: int = 0,
    *,
    argnums: "int | nnx.DiffState | Sequence[int | nnx.DiffState]" = 0,
    has_aux: bool = False,
) -> Callable[P, tuple[R, UnscaledGrads]]:
    """Returns a function of a loss and its true gradients, differentiated at its scale.

    As ``jax.value_and_grad``, with the loss multiplied by its scale on the way in and the
    gradients divided by it, in float32, on the way out. Of an NNX module the gradients are those
    of ``nnx.Param``, as ``nnx.value_and_grad`` has them; of an Equinox module those of its
    floating arrays, as ``eqx.filter_value_and_grad`` has them. What the function does to NNX
    objects that it is given stays done, but for one thing: where a gradient is not finite, their
    statistics and caches are what they were, as the step is skipped.

    Args:
        loss_fn: Returns a scalar loss, float32 or wider.
        opt_state: The state of an optimizer that the loss feeds, or the ``nnx.Optimizer``.
        loss_id: Which of the optimizer's losses it is.
        argnums: Which positional arguments to differentiate by; with NNX also
            ``nnx.DiffState(0, filter)``.
        has_aux: Whether ``loss_fn`` returns ``(loss, aux)``.

    Returns:
        A function of the arguments of ``loss_fn`` that returns ``(loss, grads)``, or
        ``((loss, aux), grads)``. The loss is not scaled; the gradients are ``UnscaledGrads``,
        for the ``update`` of the optimizer.

    Raises:
        TypeError: If ``loss_fn`` is not a function or ``opt_state`` not a state; when it is called,
            as ``scale_loss``, or if ``has_aux`` and it does not return a pair.
        ValueError: If there is no such loss, or loss scaling is not outermost, as ``unscale``;
            when it is called, as ``scale_loss``.

    Example:
        >>> from jinit import amp
        >>> tx = amp.loss_scaling(optax.sgd(0.5), num_losses=2)
        >>> params = jnp.array([1.0, 2.0])
        >>> state = tx.init(params)
        >>> square, grads = value_and_grad(lambda p: (p**2).sum() / 2, state, 0)(params)
        >>> total, more = value_and_grad(lambda p: p.sum(), state, 1)(params)
        >>> updates, state = tx.update(grads + more, state, params)
        >>> float(square), float(total), updates.tolist(), state.loss_scale.tolist()
        (2.5, 3.0, [-1.0, -1.5], [65536.0, 65536.0])
    """
    check_function("value_and_grad", loss_fn)
    _check_outermost(opt_state)
    check_loss_id(loss_id, find_scale(opt_state).size)

    def of_scaled(*args: P.args, **kwargs: P.kwargs) -> tuple[jax.Array, Any]:
        value: Any = loss_fn(*args, **kwargs)
        if has_aux:
            check_aux(value)
        return scale_loss(value[0] if has_aux else value, opt_state, loss_id), value

    def value_and_unscaled_grads(*args: P.args, **kwargs: P.kwargs) -> tuple[R, UnscaledGrads]:
        before = carried_state((args, kwargs))
        (_, value), grads = differentiated(of_scaled, argnums, args, kwargs)
        unscaled = unscale(grads, opt_state, loss_id)
        keep_where(unscaled.finite, before)
        return value, unscaled

    return value_and_unscaled_grads


def check_loss_id(loss_id: Any, num_losses: int) -> None:
    """Raises a ValueError where an optimizer has no such loss."""
    integer = hasattr(loss_id, "__index__") and not isinstance(loss_id, (bool, jax.Array))
    if integer and 0 <= int(loss_id) < num_losses:
        return
    among = "0, the only loss" if num_losses == 1 else f"an integer from 0 to {num_losses - 1}"
    raise ValueError(
        f"loss_id must be {among}, not {loss_id!r}: the optimizer has num_losses={num_losses}"
    )


def marked_again(grads: Any, params: Any, num_losses: int) -> Any:
    """Returns ``UnscaledGrads`` of which ``nnx.Optimizer`` kept the gradients alone.

    Its ``update`` takes the variables out of what it is given: of ``UnscaledGrads`` the entry
    ``grads`` is left. Of one loss the mark can be found anew, for what overflowed is not finite.
    """
    left = isinstance(grads, Mapping) and list(grads) == ["grads"]
    if params is None or not left or jax.tree.structure(grads) == jax.tree.structure(params):
        return grads
    if num_losses > 1:
        raise ValueError(
            "nnx.Optimizer drops which loss gradients come from, and this one has "
            f"num_losses={num_losses}: write optimizer.update(model, grads.grads, "
            "overflow=grads.overflow)"
        )
    true = grads["grads"]
    return UnscaledGrads(true, {0: 1.0 - all_finite(true).astype(jnp.float32)})


def _check_outermost(opt_state: Any) -> None:
    """Raises a ValueError where unscaled gradients pass what cannot take them, or loses marks."""
    opt_state = _held_state(opt_state)
    for path, _ in optax.tree.get_all_with_path(opt_state, "loss_scale"):
        for key in path:
            outer = _OUTSIDE.get(getattr(key, "tuple_name", ""))
            if outer:
                raise ValueError(
                    f"loss scaling is inside {outer}, which looks into the gradients before it: "
                    f"loss_scaling must be outermost, amp.loss_scaling({outer}(...){_AS[outer]})"
                )


def _held_state(opt_state: Any) -> Any:
    """Returns the state of an ``nnx.Optimizer``, and any other as it is."""
    nnx_optimizer = is_framework_type(opt_state, "flax.nnx", "Optimizer")
    return opt_state.opt_state if nnx_optimizer else opt_state


def find_scale(opt_state: Any) -> jax.Array:
    """Finds the loss scale in a state or an ``nnx.Optimizer``, of shape () or (num_losses,).

    Raises:
        TypeError: If it is not a state.
        ValueError: If there is none, or more than one.
    """
    held = optax.tree.get_all_with_path(_held_state(opt_state), "loss_scale")
    found = [value.get_value() if is_nnx_variable(value) else value for _, value in held]
    if not found:
        check_opt_state(opt_state)
    if len(found) != 1:
        raise ValueError(
            f"opt_state holds {len(found) or 'no'} loss_scale where one is needed: initialize "
            "the optimizer with amp.initialize or amp.loss_scaling, and give the state of one, "
            f"not {shown(opt_state)}"
        )
    return jnp.asarray(found[0])


def _scale_of(opt_state: OptState, loss_id: int) -> jax.Array:
    scale = find_scale(opt_state)
    check_loss_id(loss_id, scale.size)
    return scale[loss_id] if scale.ndim else scale


def map_inexact(function: Callable[[jax.Array], jax.Array], tree: PyTree) -> PyTree:
    """Maps a function over float32 (or wider) views; integers and float0 gradients stay."""

    def visit(leaf: Any) -> Any:
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact):
            return leaf
        return function(jnp.asarray(leaf).astype(jnp.float32 if dtype.itemsize < 4 else dtype))

    return jax.tree.map(visit, tree)


def all_finite(tree: Any) -> jax.Array:
    """Returns whether every floating leaf of a tree is finite, as a bool of shape ()."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.stack([jnp.asarray(True), *(jnp.isfinite(leaf).all() for leaf in leaves)]).all()
