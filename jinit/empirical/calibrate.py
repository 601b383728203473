"""``empirical_init`` and ``calibrate``: what the user calls."""

import functools
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
from jax.core import Tracer

from jinit.empirical.inputs import check_finite, check_optimizer, check_params, leaf_paths
from jinit.empirical.report import Report, build_report
from jinit.empirical.run import Findings, Job, calibrated, rescale, scaled
from jinit.empirical.transform import scale_by_multipliers

if TYPE_CHECKING:
    import optax

__all__ = ["Calibration", "calibrate", "empirical_init"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "multipliers", "scales", "findings"],
    meta_fields=["paths"],
)
@dataclass(frozen=True)
class Calibration:
    """What ``calibrate`` measured; a pytree, so that it may be returned from a jitted function.

    Attributes:
        params: The rescaled tree, with the structure, dtypes and shardings of the one given.
        multipliers: A tree of the same structure that holds each leaf's float32 learning-rate
            multiplier: of shape (), or with a leading axis for every scan over the leaf's layers.
        scales: Likewise what each leaf was multiplied by.
        findings: The statistics behind the report.
        paths: The path of every leaf.
    """

    params: Any
    multipliers: Any
    scales: Any
    findings: Findings
    paths: tuple[str, ...]

    @property
    def report(self) -> Report:
        """The RMS of activation, gradient and update of every layer, before and after."""
        return build_report(self.findings, self.paths)

    def transform(self) -> "optax.GradientTransformation":
        """Returns the optax transformation that multiplies every update by its multiplier.

        It stands after Adam or momentum and before weight decay and the learning rate. The
        multipliers are its state, so they are saved with the optimizer.

        Example:
            >>> import jax, jax.numpy as jnp, jinit, optax
            >>> params = {"w": jnp.eye(4)}
            >>> result = jinit.calibrate(params, lambda p, x: x @ p["w"], jnp.ones((2, 4)), jnp.sum)
            >>> tx = optax.chain(
            ...     optax.scale_by_adam(), result.transform(), optax.scale_by_learning_rate(1e-2)
            ... )
            >>> updates, state = tx.update({"w": jnp.ones((4, 4))}, tx.init(params))
            >>> bool(jnp.allclose(updates["w"], -1e-2 * result.multipliers["w"]))
            True
        """
        return scale_by_multipliers(self.multipliers)

    def __repr__(self) -> str:
        return f"Calibration of {len(self.paths)} leaves\n{self.report}"


def empirical_init(
    params: Any,
    apply_fn: Callable[..., Any],
    dummy_input: Any,
    dummy_loss: Callable[..., Any],
    *,
    key: jax.Array | None = None,
    samples: int = 8,
    batch_size: int = 64,
) -> Any:
    """Rescales parameters until every layer puts out values of RMS 1.

    A layer is an equation of ``apply_fn`` in which a parameter meets data, with the bias that is
    added to its result; its output is taken before the nonlinearity. In one forward pass a key,
    each layer's output y is divided by its RMS before it flows on, and its weight W and bias b
    become ``W / rms(y)`` and ``b / rms(y)``; over keys the factors are averaged geometrically.
    That takes ``samples`` model evaluations at any depth (six times as many where a leaf serves
    several uses at once). Only activations are set: ``calibrate`` returns with them what brings
    the updates to O(1), and the report.

    Args:
        params: Any pytree of arrays, or Flax variables, of which the ``params`` are rescaled.
        apply_fn: The model, ``apply_fn(params, *inputs)``. A jax-traceable function; it is
            compiled once for equal functions and shapes.
        dummy_input: Example inputs (a tuple is splatted), or a function of ``(key)``,
            ``(key, batch_size)`` or ``(batch_size)`` that returns them.
        dummy_loss: A function of ``(output)`` or ``(output, key)`` that returns a real scalar.
            It is checked here, and used by ``calibrate``.
        key: A PRNG key, typed or legacy; ``jax.random.key(0)`` where it is None.
        samples: The number of keys.
        batch_size: What is given to a ``dummy_input`` that asks for it.

    Returns:
        The rescaled tree, with the structure, dtypes and shardings of ``params``.

    Raises:
        ValueError: ``params`` has no floating-point leaf or one that is not finite, the loss is
            not a real scalar, or the output depends on no parameter or on no input.

    Example:
        >>> import jax, jax.numpy as jnp, jinit
        >>> params = {"w": 7.0 * jnp.eye(8), "b": jnp.ones(8)}
        >>> model = lambda p, x: x @ p["w"] + p["b"]
        >>> x = jax.random.normal(jax.random.key(1), (128, 8))
        >>> params = jinit.empirical_init(params, model, x, lambda y: y.mean())
        >>> print(f"{jnp.sqrt(jnp.mean(model(params, x) ** 2)):.3f}")
        1.000

    Reference:
        The system empirical-init, which reaches the same by hundreds of passes.
    """
    job, inputs, key = _prepare(
        params, apply_fn, dummy_input, dummy_loss, key, samples=samples, batch_size=batch_size
    )
    scales, finite = scaled(job, params, inputs, key)
    check_finite(finite, leaf_paths(params))
    return _rescaled(params, scales)


def calibrate(
    params: Any,
    apply_fn: Callable[..., Any],
    dummy_input: Any,
    dummy_loss: Callable[..., Any],
    *,
    key: jax.Array | None = None,
    optimizer: Any = "adam",
    samples: int = 8,
    batch_size: int = 64,
) -> Calibration:
    """Rescales parameters, and measures what brings every layer's update to O(1) as well.

    - Activations: as ``empirical_init`` sets them.
    - Updates: with u the first step of the optimizer at a learning rate of 1, a layer's
      multiplier is ``1 / rms(dy)``, where dy is the first-order change in its output along u,
      its input held. A layer's weight and bias share it.
    - Gradients, at each layer's input, are measured and reported; they follow from the
      activations and the loss, and nothing rescales them.

    Each of the ``samples`` keys costs a forward pass for the scales, and a forward and backward
    pass and a forward pass with derivatives for the multipliers, at any depth. The report costs
    two further measurements: of the parameters as given, and of the result on fresh keys.

    Args:
        params: As in ``empirical_init``.
        apply_fn: As in ``empirical_init``.
        dummy_input: As in ``empirical_init``; use the batch size of the training.
        dummy_loss: As in ``empirical_init``. Under "sgd" the multipliers depend on its size.
        key: As in ``empirical_init``.
        optimizer: "adam", whose first step is the gradient's sign; "sgd", whose step is the
            gradient; or any optax transformation, without its learning rate.
        samples: As in ``empirical_init``.
        batch_size: As in ``empirical_init``.

    Returns:
        The rescaled tree, the multipliers and the report.

    Raises:
        ValueError: As ``empirical_init``, or the optimizer is not known.

    Example:
        >>> import jax, jax.numpy as jnp, jinit
        >>> keys = jax.random.split(jax.random.key(0))
        >>> params = [0.01 * jax.random.normal(k, (64, 64)) for k in keys]
        >>> model = lambda p, x: jax.nn.relu(x @ p[0]) @ p[1]
        >>> result = jinit.calibrate(
        ...     params,
        ...     model,
        ...     lambda key: jax.random.normal(key, (256, 64)),
        ...     lambda y, key: jnp.sum(y * jax.random.normal(key, y.shape)),
        ... )
        >>> [f"{row.activation_after:.1f} {row.update_after:.1f}" for row in result.report.rows]
        ['1.0 1.0', '1.0 1.0']

    Reference:
        The system empirical-init for the three quantities; the multipliers under Adam repeat the
        widths' rule of Yang et al., "Tensor Programs V" (2022).
    """
    check_optimizer(optimizer)
    job, inputs, key = _prepare(
        params,
        apply_fn,
        dummy_input,
        dummy_loss,
        key,
        optimizer=optimizer,
        samples=samples,
        batch_size=batch_size,
    )
    findings = calibrated(job, params, inputs, key)
    paths = leaf_paths(params)
    check_finite(findings.finite, paths)
    tree = jax.tree.structure(params)
    return Calibration(
        params=_rescaled(params, findings.scales),
        multipliers=jax.tree.unflatten(tree, findings.multipliers),
        scales=jax.tree.unflatten(tree, findings.scales),
        findings=findings,
        paths=tuple(paths),
    )


def _prepare(
    params: Any,
    apply_fn: Callable[..., Any],
    dummy_input: Any,
    dummy_loss: Callable[..., Any],
    key: jax.Array | None,
    **options: Any,
) -> tuple[Job, Any, jax.Array]:
    """Checks the arguments and divides them into what is compiled for and what is run on."""
    leaves, paths = jax.tree.leaves(params), leaf_paths(params)
    check_params(leaves, paths)
    _check_counts(**{name: options[name] for name in ("samples", "batch_size")})
    collection = "params" if isinstance(params, Mapping) and "params" in params else None
    drawn = callable(dummy_input)
    job = Job(
        apply_fn=_Function(apply_fn),
        dummy_input=_Function(dummy_input) if drawn else None,
        dummy_loss=_Function(dummy_loss),
        trainable=tuple(collection in (None, path.partition("/")[0]) for path in paths),
        collection=collection,
        **options,
    )
    key = jax.random.key(0) if key is None else key
    return job, None if drawn else dummy_input, key


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
            raise ValueError(f"{name}={value!r} must be a positive integer")


def _rescaled(params: Any, scales: list[jax.Array]) -> Any:
    leaves, tree = jax.tree.flatten(params)
    shardings = tuple(_sharding(leaf) for leaf in leaves)
    return jax.tree.unflatten(tree, rescale(leaves, scales, shardings))


def _sharding(leaf: Any) -> Any:
    """Returns a sharding over several devices; what is on one stays free to move."""
    sharding = None if isinstance(leaf, Tracer) else getattr(leaf, "sharding", None)
    return sharding if sharding is not None and len(sharding.device_set) > 1 else None


class _Function:
    """A function as a key of the compilation cache.

    Methods of equal modules are equal, though Python compares them by identity; what cannot be
    hashed, such as a module with a list field, counts as itself.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        functools.update_wrapper(self, fn, updated=())
        self.fn = fn
        self.parts = tuple(
            _key(part) for part in (getattr(fn, "__self__", None), getattr(fn, "__func__", fn))
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.fn(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Function) and self.parts == other.parts

    def __hash__(self) -> int:
        return hash(self.parts)


def _key(part: Any) -> Any:
    try:
        hash(part)
    except TypeError:
        return id(part)
    return part
