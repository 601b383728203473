"""``coord_check``: what the user calls, and what is asked of the arguments."""

import functools
import math
import numbers
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import numpy as np

from jinit._kinds import kind_of, model_kind
from jinit._known import known_arguments
from jinit._trees import leaf_paths
from jinit.empirical.arguments import (
    check_arrays,
    check_counts,
    check_inputs,
    check_key,
    check_loss,
    check_model,
    check_params,
)
from jinit.empirical.user_functions import draw_inputs, positional
from jinit.inspect.coordinates import CoordCheck, build_check
from jinit.inspect.training import Model, Program, Sizes, train_and_measure
from jinit.modules.kinds import calls_itself, has_variables, lacks_variables, name_of
from jinit.modules.model import read_model
from jinit.typing import ApplyFn, DrawFn, Key, LossFn, PyTree

if TYPE_CHECKING:
    import optax

__all__ = ["coord_check"]

MakeModel: TypeAlias = Callable[
    ..., "tuple[PyTree, ApplyFn] | tuple[PyTree, ApplyFn, optax.GradientTransformation]"
]
"""Takes ``(width)`` or ``(width, key)``."""

Optimizer: TypeAlias = (
    "optax.GradientTransformation | Callable[[int], optax.GradientTransformation]"
)
"""A transformation, or what makes one of a width."""

_LEARNING_RATE = 1e-4


@known_arguments
def coord_check(
    make_model: MakeModel,
    widths: Iterable[int],
    dummy_input: PyTree | DrawFn,
    dummy_loss: LossFn,
    *,
    optimizer: "Optimizer | None" = None,
    steps: int = 5,
    seeds: int = 1,
    batch_size: int = 64,
    key: Key | None = None,
    tolerance: float = 0.25,
) -> CoordCheck:
    """Trains a model at several widths, and measures how its layers depend on width.

    At every width, and for every seed, the model is trained on one batch. With ``y_t`` a layer's
    output on that batch after t steps, before the nonlinearity, the check records::

        activation = rms(y_t)        update = rms(y_t - y_0)

    and fits ``c * width ** exponent`` to each over the widths at the last step. Under a
    parametrization by which hyperparameters carry over from width to width, no exponent is
    above 0, and every layer's update is steady; an update that grows bounds the learning rate of
    wide models, one that shrinks leaves the layer as it was.

    A calibrated model whose output starts at an RMS of 1 has one update that grows, the output's,
    as ``width ** 0.5``: changes aligned with its weights add up. An output that starts at
    ``width ** -0.5`` is steady.

    The exponents are those of the widths given; narrow ones are far from the limit. Let the
    learning rate be so small that the loss is not yet fitted at the widest: what is fitted stops
    changing, and a growing update looks steady.

    Args:
        make_model: A function of ``(width)`` or ``(width, key)``. It returns
            ``(params, apply_fn)``, as ``calibrate`` takes them, or ``(params, apply_fn, tx)``
            with an optimizer of its own, such as one that holds ``result.transform()``. A seed's
            key is the same at every width.
        widths: At least two, increasing.
        dummy_input: Example inputs (a tuple is splatted), or a function of ``(key)``,
            ``(key, batch_size)`` or ``(batch_size)`` that returns them; drawn once a seed, the
            same at every width.
        dummy_loss: A function of ``(output)`` or ``(output, key)`` that returns a real scalar; its
            key is the same at every step.
        optimizer: An optax transformation with its learning rate, or a function of width that
            returns one; ``optax.adam(1e-4)`` where it is None.
        steps: The number of training steps.
        seeds: How many models are averaged over; squares are averaged. More than one needs a
            ``make_model`` that takes a key.
        batch_size: What is given to a ``dummy_input`` that asks for it.
        key: A PRNG key, typed or legacy; ``jax.random.key(0)`` where it is None.
        tolerance: How far from 0 an exponent may be where the layer is called steady. Theory
            knows multiples of 1/2, and the default lies halfway to the first.

    Returns:
        The curves and exponents: printed they are a table, ``to_dict()`` makes them plain data,
        ``plot()`` draws them.

    Raises:
        ValueError: ``widths``, a count or the optimizer is not as it should be, layers differ
            between widths, or a layer's output is not finite.
        TypeError: ``make_model`` is no function, or returned something else.

    Example:
        >>> import jax, jax.numpy as jnp, jinit, optax
        >>> def make_model(width, key):
        ...     shapes = {"first": (16, width), "hidden": (width, width)}
        ...     params = {n: jax.random.normal(key, s) / s[0] ** 0.5 for n, s in shapes.items()}
        ...     return params, lambda p, x: jnp.tanh(x @ p["first"]) @ p["hidden"]
        >>> check = jinit.coord_check(
        ...     make_model,
        ...     [64, 128, 256],
        ...     lambda key, batch_size: jax.random.normal(key, (batch_size, 16)),
        ...     lambda y: jnp.mean(jnp.square(y - 1)),
        ... )
        >>> [f"{fit.path}: {fit.verdict}" for fit in check.fits]
        ['first: steady', 'hidden: update grows']

    Source:
        Yang et al., "Tensor Programs V: Tuning Large Neural Networks via Zero-Shot
        Hyperparameter Transfer" (2022), appendix D.1.
    """
    _check_make_model(make_model)
    check_inputs(dummy_input)
    check_loss(dummy_loss)
    widths = _check_widths(widths)
    check_counts(steps=steps, seeds=seeds, batch_size=batch_size)
    _check_tolerance(tolerance)
    takes_key = len(positional(make_model, ("key", "rng"))) >= 2
    if seeds > 1 and not takes_key:
        raise ValueError(
            f"seeds={seeds} models of one width would be equal, since make_model takes no key; "
            "let it take (width, key)"
        )
    key = check_key(key)
    found: dict[int, Sizes] = {}
    for width in widths:
        program, sizes = Program(), []
        for seed in range(seeds):
            model_key, input_key, loss_key = jax.random.split(jax.random.fold_in(key, seed), 3)
            made = _made(make_model, (width, model_key) if takes_key else (width,))
            model = _check_model(made, width, optimizer, loss_key)
            inputs = draw_inputs(dummy_input, input_key, batch_size)
            sizes.append(train_and_measure(program, model, inputs, dummy_loss, loss_key, steps))
        found[width] = _mean(sizes)
        _check_finite(found[width], width)
        _check_same_layers(found[widths[0]], widths[0], found[width], width)
    return build_check(found, tolerance)


def _check_make_model(make_model: Any) -> None:
    model = model_kind(make_model) is not None or has_variables(make_model)
    if model or lacks_variables(make_model) or not callable(make_model):
        raise TypeError(
            f"make_model is {name_of(make_model)}; pass a function of width that returns "
            "(params, apply_fn)"
        )


def _made(make_model: MakeModel, given: tuple[Any, ...]) -> Any:
    try:
        return make_model(*given)
    except Exception as error:
        error.add_note(
            f"raised by make_model, {kind_of(make_model)}, which was called with "
            f"({', '.join(('width', 'key')[: len(given)])}); it returns (params, apply_fn), or a "
            "module that can be called"
        )
        raise


def _check_widths(widths: Iterable[int]) -> tuple[int, ...]:
    widths = tuple(widths) if isinstance(widths, Iterable) else (widths,)
    whole = all(isinstance(w, numbers.Integral) and not isinstance(w, bool) for w in widths)
    if not whole or len(widths) < 2 or widths[0] < 1 or list(widths) != sorted(set(widths)):
        raise ValueError(
            f"widths={list(widths)} must be at least two positive integers, increasing, "
            "such as [64, 128, 256]"
        )
    return tuple(int(width) for width in widths)


def _check_tolerance(tolerance: float) -> None:
    if not isinstance(tolerance, numbers.Real) or not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance={tolerance!r} must be a finite number that is not negative")


def _check_model(made: Any, width: int, optimizer: Any, key: Key) -> Model:
    """Brings what ``make_model`` returned to one form."""
    given, apply_fn, *own = _parts(made, width)
    check_model(given, apply_fn, f"; make_model({width}) returns (params, apply_fn)")
    model = read_model(given, apply_fn)
    leaves, paths = jax.tree.leaves(model.variables), leaf_paths(model.variables)
    check_arrays(leaves, paths)
    check_params(leaves, paths)
    rngs = dict(zip(model.rngs, jax.random.split(key, len(model.rngs)), strict=True))
    applied = functools.partial(model.apply_fn, rngs=rngs) if rngs else model.apply_fn
    return Model(model.variables, applied, _optimizer(own, width, optimizer))


def _parts(made: Any, width: int) -> list[Any]:
    """Returns what was made, what applies it and the optimizer, if any; a module applies itself."""
    alone = not isinstance(made, tuple) or calls_itself(made) or lacks_variables(made)
    parts = [made] if alone else list(made)
    if parts and lacks_variables(parts[0]):
        raise TypeError(
            f"make_model({width}) returned {name_of(parts[0])}, which holds no variables; return "
            "those that its init returned before it, as in (model.init(key, x), model)"
        )
    if calls_itself(parts[0]) and (len(parts) == 1 or _is_optimizer(parts[1])):
        parts.insert(1, None)
    applies = len(parts) > 1 and (callable(parts[1]) or lacks_variables(parts[1]))
    if len(parts) not in (2, 3) or not (applies or (parts[1] is None and calls_itself(parts[0]))):
        found = f"a tuple of {_types(made)}" if isinstance(made, tuple) else _types([made])
        raise TypeError(
            f"make_model({width}) returned {found}; return (params, apply_fn) or "
            "(params, apply_fn, tx), or a module that can be called, or (module, tx)"
        )
    return parts


def _is_optimizer(value: Any) -> bool:
    return hasattr(value, "init") and hasattr(value, "update")


def _types(values: Iterable[Any]) -> str:
    return ", ".join(type(value).__name__ for value in values)


def _takes_learning_rate(tx: Callable[..., Any]) -> bool:
    of_optax = getattr(tx, "__module__", "").partition(".")[0] == "optax"
    return of_optax or positional(tx, ("learning_rate",))[:1] == ["learning_rate"]


def _optimizer(own: list[Any], width: int, optimizer: Any) -> Any:
    import optax

    if own and optimizer is not None:
        raise ValueError(
            "optimizer is given, and make_model returns one as well; leave one of them out"
        )
    source = f"make_model({width})[2]" if own else "optimizer"
    tx = own[0] if own else optimizer
    if tx is None:
        return optax.adam(_LEARNING_RATE)
    if callable(tx) and _takes_learning_rate(tx):
        name = getattr(tx, "__name__", "adam")
        raise ValueError(
            f"{source}={name} is not called; pass {name}(1e-3), or a function of width that "
            "returns a transformation (the width would be its learning rate)"
        )
    if callable(tx) and not own:
        source, tx = f"optimizer({width})", tx(width)
    if not _is_optimizer(tx):
        raise ValueError(
            f"{source}={tx!r} is no optax transformation; pass one with its learning rate, "
            "such as optax.adam(1e-3)"
        )
    return tx


def _mean(sizes: list[Sizes]) -> Sizes:
    """Averages the squares over seeds."""
    activation, update = (
        np.sqrt(np.mean(np.square([np.float64(getattr(s, name)) for s in sizes]), axis=0))
        for name in ("activation", "update")
    )
    return Sizes(sizes[0].labels, sizes[0].opaque, activation, update)


def _check_finite(sizes: Sizes, width: int) -> None:
    bad = np.argwhere(~np.isfinite(sizes.activation + sizes.update))
    if len(bad):
        step, layer = bad[0]
        raise ValueError(
            f"the output of layer {sizes.labels[layer]} is not finite after {step} steps at "
            f"width {width}; "
            + ("lower the learning rate" if step else "check the parameters and the inputs")
        )


def _check_same_layers(first: Sizes, narrow: int, other: Sizes, wide: int) -> None:
    if first.labels == other.labels:
        return
    lost = [label for label in first.labels if label not in other.labels]
    gained = [label for label in other.labels if label not in first.labels]
    raise ValueError(
        f"the layers differ between widths: only width {narrow} has {_listed(lost)}, only width "
        f"{wide} has {_listed(gained)}; let width change shapes and nothing else"
    )


def _listed(labels: list[str]) -> str:
    return ", ".join(labels) or "none"
