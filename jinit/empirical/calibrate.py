"""``empirical_init`` and ``calibrate``: what the user calls."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict, TypeVar, Unpack, overload

from jax.core import Tracer

from jinit._known import known_arguments
from jinit._progress import progress
from jinit.empirical.abstract import is_abstract, planned
from jinit.empirical.measuring.meshes import entered_mesh
from jinit.empirical.request import read_arguments
from jinit.empirical.results.calibration import Calibration
from jinit.empirical.results.checks import check_findings, check_scaled
from jinit.empirical.results.scaled_trees import calibration_of, rescaled
from jinit.empirical.solve import solve, solve_forward
from jinit.modules.roles import Role
from jinit.typing import ApplyFn, DrawFn, Key, LossFn, Mode, Model, Patterns, PyTree, Step

if TYPE_CHECKING:
    import optax

__all__ = ["calibrate", "empirical_init"]

P = TypeVar("P")


class Options(TypedDict, total=False):
    """The keywords of ``empirical_init``, for its overloads; their defaults stand there."""

    key: Key | None
    samples: int
    batch_size: int
    target: float | Callable[..., float]
    include: Patterns
    exclude: Patterns
    collection: str | None
    rngs: str | Sequence[str]
    has_aux: bool
    roles: Mapping[str | type, Role] | None
    verbose: bool


class CalibrateOptions(Options, total=False):
    """The keywords of ``calibrate``, likewise."""

    optimizer: "str | optax.GradientTransformation"
    mode: Mode
    step: Step


@overload
def empirical_init(
    params: P, dummy_input: PyTree | DrawFn, dummy_loss: LossFn, **options: Unpack[Options]
) -> P: ...


@overload
def empirical_init(
    params: P,
    apply_fn: ApplyFn | Model | None,
    dummy_input: PyTree | DrawFn,
    dummy_loss: LossFn,
    **options: Unpack[Options],
) -> P: ...


@known_arguments
def empirical_init(  # pyright: ignore[reportInconsistentOverload]: a module shifts places
    params: PyTree,
    apply_fn: ApplyFn | Model | PyTree = None,
    dummy_input: PyTree | DrawFn = None,
    dummy_loss: LossFn | None = None,
    *,
    key: Key | None = None,
    samples: int = 8,
    batch_size: int = 64,
    target: float | Callable[..., float] = 1.0,
    include: Patterns = None,
    exclude: Patterns = None,
    collection: str | None = None,
    rngs: str | Sequence[str] = (),
    has_aux: bool = False,
    roles: Mapping[str | type, Role] | None = None,
    verbose: bool = False,
) -> PyTree:
    """Rescales parameters until every layer produces values of RMS 1.

    A layer is an equation of ``apply_fn`` in which a parameter meets data, with the bias that is
    added to its result; its output is taken before the nonlinearity. In one forward pass a key,
    each layer's output y is divided by its RMS before it flows on, and its weight W and bias b
    become ``W / rms(y)`` and ``b / rms(y)``; over keys the factors are averaged geometrically. A
    layer that is used more than once is W with b at every use, and takes the geometric mean of
    what its uses need. Where W is computed from several leaves, they scale together: W + A @ B
    with W by s and A and B by its root.
    That takes ``samples`` model evaluations at any depth (six times as many where a leaf serves
    several uses at once). Only activations are set: ``calibrate`` returns with them what brings
    the updates to O(1), and the report.

    Args:
        params: Any pytree of arrays, or Flax variables, of which the ``params`` are rescaled; or a
            module of NNX, of Equinox or a bound one of linen, which is not touched: its state
            (statistics, random counters) stays as it is, and what the runs do to it is dropped.
        apply_fn: The model, ``apply_fn(params, *inputs)``. A jax-traceable function; it is
            compiled once for equal functions and shapes: as under ``jax.jit``, what else it
            reads than its arguments is read then. Keyword arguments are given to it by
            ``functools.partial``. A module calls itself where it is left out, as in
            ``empirical_init(model, x, loss)``; after a linen module's variables it may be the
            module, and after Haiku's params what ``haiku.transform`` returned (after
            ``(params, state)`` what ``haiku.transform_with_state`` did). The keys that modules
            draw with are drawn anew for every sample.
        dummy_input: Example inputs (a tuple is splatted), or a function of ``(key)``,
            ``(key, batch_size)`` or ``(batch_size)`` that returns them.
        dummy_loss: A function of ``(output)`` or ``(output, key)`` that returns a real scalar.
            It is checked here, and used by ``calibrate``.
        key: A PRNG key, typed or legacy; ``jax.random.key(0)`` where it is None.
        samples: The number of keys.
        batch_size: What is given to a ``dummy_input`` that asks for it.
        target: The RMS that every output is brought to, or a function of a ``LayerInfo``, which has
            ``path``, ``kind``, ``fan_in``, ``fan_out``, ``index``, ``number`` and ``count``:
            ``lambda layer: (layer.fan_in / layer.fan_out) ** 0.5`` scales by fan-out.
        include: Patterns of the leaves' paths, such as ``*/kernel``: others stay as they are.
        exclude: Patterns of the leaves that stay as they are.
        collection: The top-level entry of ``params`` that holds the parameters, where it is not
            Flax's ``params``; the others (batch statistics) are carried along.
        rngs: The names of the random keys that ``apply_fn`` is given as ``rngs={name: key}``.
        has_aux: Whether ``apply_fn`` returns ``(output, anything)``, as Flax does with
            ``mutable``; the loss sees the output.
        roles: What collections or NNX's types of variables hold, where it is another than
            ``jinit.modules.roles`` says: ``{"adapters": "parameter", MyVariable: "statistic"}``.
        verbose: Whether to show the progress, on standard error.

    Returns:
        The rescaled tree, with the structure, dtypes and shardings of ``params``; of a module a new
        one of its kind.

    Raises:
        ValueError: An argument is not what it should be; ``params`` has no floating-point leaf,
            two of one path, or one that is not finite, the loss is not a real scalar, the output
            depends on no parameter or on no input, or a layer's output is not finite.
        TypeError: An argument is not of the kind of its place, such as a model for its ``apply``;
            or ``params`` has leaves that are not arrays, which are listed.

    Example:
        >>> import jax, jax.numpy as jnp, jinit
        >>> params = {"w": 7.0 * jnp.eye(8), "b": jnp.ones(8)}
        >>> model = lambda p, x: x @ p["w"] + p["b"]
        >>> x = jax.random.normal(jax.random.key(1), (128, 8))
        >>> params = jinit.empirical_init(params, model, x, lambda y: y.mean())
        >>> print(f"{jnp.sqrt(jnp.mean(model(params, x) ** 2)):.3f}")
        1.000

        >>> from flax import nnx
        >>> model = nnx.Linear(8, 32, rngs=nnx.Rngs(0))
        >>> model = jinit.empirical_init(model, x, lambda y: y.mean())
        >>> print(type(model).__name__, f"{jnp.sqrt(jnp.mean(model(x) ** 2)):.3f}")
        Linear 1.000

    Source:
        The system empirical-init, which reaches the same by hundreds of passes.
    """
    problem = read_arguments(
        params, apply_fn, dummy_input, dummy_loss, key, samples=samples, batch_size=batch_size,
        target=target, include=include, exclude=exclude, collection=collection, rngs=rngs,
        has_aux=has_aux, roles=roles,
    )  # fmt: skip
    with entered_mesh((problem.params, problem.inputs)), progress(verbose, "passes") as bar:
        found = solve_forward(problem, bar)
    check_scaled(found)
    return problem.model.restore(rescaled(problem, found.scales))


@overload
def calibrate(
    params: P, dummy_input: PyTree | DrawFn, dummy_loss: LossFn, **options: Unpack[CalibrateOptions]
) -> Calibration[P]: ...


@overload
def calibrate(
    params: P,
    apply_fn: ApplyFn | Model | None,
    dummy_input: PyTree | DrawFn,
    dummy_loss: LossFn,
    **options: Unpack[CalibrateOptions],
) -> Calibration[P]: ...


@known_arguments
def calibrate(  # pyright: ignore[reportInconsistentOverload]: a module shifts places
    params: PyTree,
    apply_fn: ApplyFn | Model | PyTree = None,
    dummy_input: PyTree | DrawFn = None,
    dummy_loss: LossFn | None = None,
    *,
    key: Key | None = None,
    optimizer: "str | optax.GradientTransformation" = "adam",
    mode: Mode = "fold",
    step: Step = "layer",
    samples: int = 8,
    batch_size: int = 64,
    target: float | Callable[..., float] = 1.0,
    include: Patterns = None,
    exclude: Patterns = None,
    collection: str | None = None,
    rngs: str | Sequence[str] = (),
    has_aux: bool = False,
    roles: Mapping[str | type, Role] | None = None,
    verbose: bool = False,
) -> Calibration:
    """Rescales parameters, and measures what brings every layer's update to O(1) as well.

    - Activations: as ``empirical_init`` sets them, on keys of its own: with dropout the two differ
      by the noise of the samples.
    - Updates: with u the first step of the optimizer that is not zero, at a learning rate of 1
      and under one gradient (one that accumulates gradients is given as many as it waits for; of
      a schedule it is the first rate above 0 that counts), a layer's multiplier is ``1 / rms(dy)``,
      where dy is the first-order change in its output along u, its input held. A layer's weight
      and bias share it.
      With ``step="network"`` multipliers are also divided by the growth, the geometric mean
      over layers of ``rms(dy) / rms(y)`` where dy is the change along the step of all layers at
      once. Deeper networks then take smaller steps, and one learning rate serves more sizes.
    - Gradients, at each layer's input, follow from the activations and the loss. In fold mode
      they are measured and reported; in explicit mode ``result.apply_fn`` multiplies each by
      ``1 / rms`` on its way back.

    In fold mode ``apply_fn`` stays as it is, and ``result.transform()`` carries the multipliers.
    In explicit mode the parameters W become ``a * W`` inside ``result.apply_fn``: under Adam a is
    the multiplier, under SGD the gradient of W is also multiplied by ``gy = m / a**2``. On
    plain chains both train alike; where paths branch and join, what explicit mode sends back is
    no longer a gradient.

    Each of the ``samples`` keys costs a forward and backward pass and a forward pass with
    derivatives, at any depth. The report is measured apart, on fresh keys: the parameters as given
    on a quarter as many but one, the result on half as many. One pass more repeats the first key
    with every parameter changed by a rounding error: where a leaf's gradient comes out altogether
    different, it is rounding, and its step counts for nothing. A leaf that serves several uses
    takes six forward passes a key more; in explicit mode, one in a loop that hands the same leaf
    to every iteration six measurements. Equal layers are traced and compiled once.
    Gradients pass weights of nothing but zeros (a head, a gate) as if they were random.

    Args:
        params: Any pytree of arrays, or Flax variables, of which the ``params`` are rescaled; or a
            module, as ``empirical_init`` takes it. Of ``jax.ShapeDtypeStruct``, as
            ``jax.eval_shape`` returns them, nothing is measured: the report lists the layers and
            what would be done to them, and the trees hold shapes with the shardings given.
        apply_fn: The model, ``apply_fn(params, *inputs)``: a function that JAX can trace, compiled
            once for equal functions and shapes; left out where a module calls itself, as in
            ``calibrate(model, x, loss)``; or a linen module, or what ``haiku.transform`` returned.
        dummy_input: Example inputs (a tuple is splatted), or a function of ``(key)``,
            ``(key, batch_size)`` or ``(batch_size)`` that returns them. Use the batch size of the
            training.
        dummy_loss: A function of ``(output)`` or ``(output, key)`` that returns a real scalar.
            Under "sgd" the multipliers depend on its size.
        key: A PRNG key, typed or legacy; ``jax.random.key(0)`` where it is None.
        optimizer: "adam", whose first step is the gradient's sign; "sgd", whose step is the
            gradient; or any optax transformation, without its learning rate. Explicit mode takes
            those whose first step is as large as the gradient, or does not depend on its size.
            One that asks for more than gradients and parameters, as a line search does for the
            loss, is refused.
        mode: "fold" or "explicit".
        step: What a learning rate of 1 stands for: with "layer" each layer's output changes by 1
            along its own step; with "network" all multipliers are divided by the growth, so that
            along the step of the whole network the outputs change by as much as they are.
        samples: The number of keys.
        batch_size: What is given to a ``dummy_input`` that asks for it.
        target: The RMS that every output is brought to, or a function of a ``LayerInfo``, which
            has ``path``, ``kind``, ``fan_in``, ``fan_out``, ``index``, ``number`` and ``count``.
        include: Patterns of the leaves' paths, such as ``*/kernel``: others stay as they are, and
            their multipliers are 1.
        exclude: Patterns of the leaves that stay as they are, likewise.
        collection: The top-level entry of ``params`` that holds the parameters, where it is not
            Flax's ``params``; the others (batch statistics) are carried along.
        rngs: The names of the random keys that ``apply_fn`` is given as ``rngs={name: key}``.
        has_aux: Whether ``apply_fn`` returns ``(output, anything)``, as Flax does with
            ``mutable``; the loss sees the output.
        roles: What collections or NNX's types of variables hold, where it is another than
            ``jinit.modules.roles`` says: ``{"adapters": "parameter", MyVariable: "statistic"}``.
        verbose: Whether to show the progress, to measure the means of outputs and the gradients
            of parameters as well, and to print the report.

    Returns:
        The rescaled tree, the multipliers or scales, and the report.

    Raises:
        ValueError: An argument is not what it should be; ``params`` has no floating-point leaf,
            two of one path, or one that is not finite; the loss is not a real scalar; the output
            depends on no parameter or on no input; a layer's output, a gradient or an update is
            not finite; a scale is beyond the range of float32; the optimizer changes nothing in
            1000 steps, or explicit mode cannot follow it.
        TypeError: An argument is not of the kind of its place, such as a model for its ``apply``;
            ``params`` has leaves that are not arrays, which are listed; or the optimizer is not
            one.

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

        >>> from flax import nnx
        >>> import optax
        >>> rngs, x = nnx.Rngs(0), jax.random.normal(keys[0], (256, 64))
        >>> layers = [nnx.Linear(64, 64, rngs=rngs), nnx.BatchNorm(64, rngs=rngs), nnx.relu]
        >>> model = nnx.Sequential(*layers, nnx.Dropout(0.5, rngs=rngs))
        >>> result = jinit.calibrate(model, x, lambda y: jnp.mean(y**2))
        >>> tx = optax.chain(optax.scale_by_adam(), result.transform(), optax.scale(-0.1))
        >>> optimizer = nnx.Optimizer(result.params, tx, wrt=nnx.Param)
        >>> [row.path for row in result.report.rows]
        ['layers/0/kernel', 'layers/1/scale', 'layers/1/bias']

    Source:
        The system empirical-init for the three quantities; the multipliers under Adam repeat the
        widths' rule of Yang et al., "Tensor Programs V" (2022).
    """

    def run(params: PyTree) -> Calibration:
        problem = read_arguments(
            params, apply_fn, dummy_input, dummy_loss, key, optimizer=optimizer, mode=mode,
            step=step, samples=samples, batch_size=batch_size, target=target, include=include,
            exclude=exclude, collection=collection, rngs=rngs, has_aux=has_aux, roles=roles,
            detailed=verbose,
        )  # fmt: skip
        with entered_mesh((problem.params, problem.inputs)), progress(verbose, "passes") as bar:
            findings = solve(problem, bar)
        check_findings(findings)
        result = calibration_of(problem, findings)
        if verbose and not isinstance(findings.before.activation, Tracer):
            print(result.report)
        return result

    return planned(run, params) if is_abstract(params) else run(params)
