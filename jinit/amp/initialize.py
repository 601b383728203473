"""The one call that gives models and optimizers their precision."""

from collections.abc import Callable, Mapping, Sequence
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Literal,
    Protocol,
    TypeAlias,
    TypedDict,
    TypeVar,
    Unpack,
    overload,
)

import numpy as np
import optax

from jinit._known import known_arguments
from jinit.amp.apply import MixedPrecisionApply, find_apply_fn
from jinit.amp.casting.linen_casts import is_linen_apply
from jinit.amp.casting.op_lists import OpLists
from jinit.amp.half_support import check_backend
from jinit.amp.levels import resolve_policy
from jinit.amp.models.haiku_model import HaikuModel, Transformed, is_haiku
from jinit.amp.models.linen_model import LinenModel
from jinit.amp.models.module_class import is_module, module_at
from jinit.amp.models.nnx_optimizer import is_nnx_optimizer, optimizer_at
from jinit.amp.policy import KeepFp32
from jinit.amp.scaling.loss_scaling import loss_scaling
from jinit.amp.scaling.master_weights import master_weights as stepping_masters
from jinit.amp.scaling.scale_schedule import parse_bool, parse_count
from jinit.modules.roles import Role
from jinit.typing import ApplyFn, DTypeLike, HalfDType, OptLevel, PyTree

if TYPE_CHECKING:
    from flax import nnx
    from flax.linen import Module

__all__ = ["initialize"]

Tx: TypeAlias = optax.GradientTransformation
Scaled: TypeAlias = optax.GradientTransformationExtraArgs
Truth: TypeAlias = bool | Literal["True", "False"]
Model: TypeAlias = ApplyFn | Transformed
M = TypeVar("M", bound=Model)
T = TypeVar("T", bound=Tx)
N = TypeVar("N", bound="nnx.Module")
E = TypeVar("E", bound="_EquinoxModule")


class Options(TypedDict, total=False):
    """The keywords of ``initialize``, for its overloads; their defaults stand there."""

    half_dtype: HalfDType
    cast_model_type: DTypeLike | None
    patch_functions: Truth | None
    patch_torch_functions: Truth | None
    keep_batchnorm_fp32: Truth | None
    master_weights: Truth | Literal["optimizer"] | None
    loss_scale: float | str | None
    cast_model_outputs: DTypeLike | None
    num_losses: int
    min_loss_scale: float | None
    max_loss_scale: float
    hysteresis: int
    skip_nonfinite: bool
    ops: OpLists | None
    keep_fp32: KeepFp32 | None
    roles: Mapping[str | type, Role] | None
    verbose: bool
    verbosity: int | None
    enabled: bool


class _EquinoxModule(Protocol):
    """What a type checker can see of one without Equinox: a dataclass that can be called."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


# With enabled=False a model is the function itself; it is typed as what it is otherwise.
@overload
def initialize(
    models: "Module", optimizers: None = ..., opt_level: OptLevel = ..., **options: Unpack[Options]
) -> LinenModel: ...


@overload
def initialize(
    models: "Module", optimizers: Tx, opt_level: OptLevel = ..., **options: Unpack[Options]
) -> tuple[LinenModel, Scaled]: ...


@overload
def initialize(
    models: Transformed,
    optimizers: None = ...,
    opt_level: OptLevel = ...,
    **options: Unpack[Options],
) -> HaikuModel: ...


@overload
def initialize(
    models: Transformed, optimizers: Tx, opt_level: OptLevel = ..., **options: Unpack[Options]
) -> tuple[HaikuModel, Scaled]: ...


@overload
def initialize(
    models: N, optimizers: None = ..., opt_level: OptLevel = ..., **options: Unpack[Options]
) -> N: ...


@overload
def initialize(
    models: N, optimizers: Tx, opt_level: OptLevel = ..., **options: Unpack[Options]
) -> tuple[N, Scaled]: ...


@overload
def initialize(
    models: N, optimizers: "nnx.Optimizer", opt_level: OptLevel = ..., **options: Unpack[Options]
) -> "tuple[N, nnx.Optimizer]": ...


@overload
def initialize(
    models: E, optimizers: None = ..., opt_level: OptLevel = ..., **options: Unpack[Options]
) -> E: ...


@overload
def initialize(
    models: E, optimizers: Tx, opt_level: OptLevel = ..., **options: Unpack[Options]
) -> tuple[E, Scaled]: ...


@overload
def initialize(
    models: ApplyFn, optimizers: None = ..., opt_level: OptLevel = ..., **options: Unpack[Options]
) -> MixedPrecisionApply: ...


@overload
def initialize(
    models: list[M], optimizers: None = ..., opt_level: OptLevel = ..., **options: Unpack[Options]
) -> list[MixedPrecisionApply]: ...


@overload
def initialize(
    models: tuple[M, ...],
    optimizers: None = ...,
    opt_level: OptLevel = ...,
    **options: Unpack[Options],
) -> tuple[MixedPrecisionApply, ...]: ...


@overload
def initialize(
    models: ApplyFn, optimizers: Tx, opt_level: OptLevel = ..., **options: Unpack[Options]
) -> tuple[MixedPrecisionApply, Scaled]: ...


@overload
def initialize(
    models: list[M], optimizers: Tx, opt_level: OptLevel = ..., **options: Unpack[Options]
) -> tuple[list[MixedPrecisionApply], Scaled]: ...


@overload
def initialize(
    models: ApplyFn, optimizers: list[T], opt_level: OptLevel = ..., **options: Unpack[Options]
) -> tuple[MixedPrecisionApply, list[Scaled]]: ...


@overload
def initialize(
    models: list[M], optimizers: list[T], opt_level: OptLevel = ..., **options: Unpack[Options]
) -> tuple[list[MixedPrecisionApply], list[Scaled]]: ...


# Whatever else is a list or a tuple, each side in the form it came in.
@overload
def initialize(
    models: M | Sequence[M],
    optimizers: T | Sequence[T],
    opt_level: OptLevel = ...,
    **options: Unpack[Options],
) -> tuple[PyTree, PyTree]: ...


@known_arguments
def initialize(
    models: Model | Sequence[Model],
    optimizers: "Tx | Sequence[Tx] | nnx.Optimizer | None" = None,
    opt_level: OptLevel = "O1",
    *,
    half_dtype: HalfDType = "auto",
    cast_model_type: DTypeLike | None = None,
    patch_functions: Truth | None = None,
    patch_torch_functions: Truth | None = None,
    keep_batchnorm_fp32: Truth | None = None,
    master_weights: Truth | Literal["optimizer"] | None = None,
    loss_scale: float | str | None = None,
    cast_model_outputs: DTypeLike | None = None,
    num_losses: int = 1,
    min_loss_scale: float | None = None,
    max_loss_scale: float = 2.0**24,
    hysteresis: int = 1,
    skip_nonfinite: bool = False,
    ops: OpLists | None = None,
    keep_fp32: KeepFp32 | None = None,
    roles: Mapping[str | type, Role] | None = None,
    verbose: bool = False,
    verbosity: int | None = None,
    enabled: bool = True,
) -> PyTree:
    """Gives models and optimizers the precision of a level.

    With C the cast to ``cast_model_type``::

        O0  y = float32(f(float32(params), float32(x)))     everything float32
        O1  y = autocast(f)(params, x)                      each operation by its own rule
        O2  y = float32(f(C(params), C(x)))                 half, float32 stored parameters
        O3  y = float32(f(C(params), C(x)))                 half, half stored parameters

    At O2 and O3 norms compute in float32 all the same, whoever wrote them: the sums over data
    that a root is taken of, their squares, and what is made of them up to the norm's result,
    which is half again; and so do layers whose parameters are kept. ``explain`` shows where.
    Constants and parameters that float16 does not hold, an eps of 1e-12 or a mask of -1e9, become
    the nearest number that it holds, and inside a norm stay what they are. Flax's collection
    ``cache`` enters the function in half, and comes back in the dtypes it had.

    The optimizer is wrapped in ``loss_scaling``. Parameters are stored by
    ``policy.cast_to_param(params)``. An explicit keyword wins over the level's property; None
    leaves the property.

    Args:
        models: An NNX or Equinox module, a linen module or its ``apply``, what ``hk.transform``
            or ``hk.transform_with_state`` returned, or an
            ``apply_fn(variables, *inputs, **kwargs)``; or a list of them. The ``variables`` of a
            function are its parameters; a mapping of collections, of which ``"params"`` is cast;
            or a module of NNX, of which ``nnx.Param`` is. What a function does to NNX objects
            that it is given is done; a state that it is given it must return.
        optimizers: An optax transformation, or a list of them; or of one NNX module its
            ``nnx.Optimizer``.
        opt_level: ``"O0"`` to ``"O3"``, with the letter O.
        half_dtype: bfloat16 or float16, or ``"bf16"`` or ``"fp16"``. ``"auto"`` is bfloat16
            except on NVIDIA GPUs older than Ampere.
        cast_model_type: The dtype of parameters and floating inputs inside the function.
        patch_functions: Whether operations are cast one by one, at O1 only.
        patch_torch_functions: The old name of ``patch_functions``.
        keep_batchnorm_fp32: Whether the parameters of batch normalization stay float32 inside
            the function. It is found by the type of its module in linen modules and in
            functions that merge one NNX graph definition; elsewhere by its path: below a
            component with ``BatchNorm``, ``batch_norm`` or the word ``bn`` in it, numbered or
            not, as in ``BatchNorm_0`` or ``bn1``.
        master_weights: Whether stored parameters are float32 where the computation is half.
            ``"optimizer"`` stores them in half, with float32 masters in the optimizer's state.
        loss_scale: ``"dynamic"`` or a number. The dynamic scale of O1 and O2 becomes 1 with
            bfloat16, which has the exponents of float32.
        cast_model_outputs: The dtype of floating outputs.
        num_losses: The number of separately scaled losses of each optimizer; ``loss_scaling``
            has the rule for several.
        min_loss_scale: The least dynamic scale.
        max_loss_scale: The greatest dynamic scale.
        hysteresis: How many steps in a row must overflow for a dynamic scale to back off.
        skip_nonfinite: Skips steps that are not finite under a constant scale too.
        keep_fp32: ``keep_fp32(path, module_type)`` tells of a parameter, such as
            ``"Block_0/LayerNorm_0/scale"``, whether it stays float32 inside a half function.
            The type of its module is known for linen and NNX, and None elsewhere. What goes into
            a kept layer is cast to float32, and its result back to half; at O2 and O3 only.
        ops: Which operations O1 runs in which dtype, by default ``amp.OPS``.
        roles: What the values of collections and of types of variables are, where it is not
            what ``jinit.modules.roles`` says, as in ``{"memory": "activation"}``.
        verbose: Whether to print the properties in effect beside the level's.
        verbosity: apex's name of ``verbose``: 1 prints, 0 does not.
        enabled: False returns the functions untouched (of a linen module what stands for its
            ``apply``, with ``init`` and the rest), and the optimizers with a constant scale of 1,
            so that the same training step runs without mixed precision.

    Returns:
        Models and optimizers in the form they came in, ``(models, optimizers)``, or only the
        models where no optimizer was given. A model is now a callable with a ``policy``. An NNX
        or Equinox module is a new module of the same kind, with its parameters as they are stored,
        that is at the level where it is called itself; of other methods write
        ``initialize(lambda model, x: model.encode(x))``. Of a
        linen module it has ``init``, ``apply``, ``init_with_output``, ``tabulate``, ``bind`` and
        the module's fields; of Haiku's pair ``init`` and ``apply``.

    Raises:
        TypeError: If a model or an optimizer is not one.
        ValueError: If a keyword has a value that it cannot have, or the level excludes it, or a
            model was initialized before, or the backend cannot compute in the half dtype.
            Nothing is changed then.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from jinit import amp
        >>> apply_fn, tx = amp.initialize(lambda params, x: x @ params, optax.sgd(0.1), "O2",
        ...                               half_dtype="bfloat16")
        >>> params = apply_fn.policy.cast_to_param(jnp.ones((2, 1)))
        >>> opt_state = tx.init(params)
        >>> def loss_fn(params, x):
        ...     return amp.scale_loss((apply_fn(params, x) ** 2).mean(), opt_state)
        >>> grads = jax.grad(loss_fn)(params, jnp.ones((3, 2)))
        >>> updates, opt_state = tx.update(grads, opt_state, params)
        >>> optax.apply_updates(params, updates)
        Array([[0.6],
               [0.6]], dtype=float32)

    Source:
        NVIDIA apex's ``amp.initialize``. Nothing is patched here: the function is wrapped,
        float32 parameters are the master weights, and the half type may be bfloat16.
    """
    policy = resolve_policy(
        opt_level,
        half_dtype,
        cast_model_type=cast_model_type,
        patch_functions=_one_name(patch_functions, patch_torch_functions),
        keep_batchnorm_fp32=keep_batchnorm_fp32,
        master_weights=master_weights,
        loss_scale=loss_scale,
        cast_model_outputs=cast_model_outputs,
        min_loss_scale=min_loss_scale,
        max_loss_scale=max_loss_scale,
        ops=ops,
        keep_fp32=keep_fp32,
        roles=roles,
    )
    enabled = parse_bool("enabled", enabled, among="True or False")
    skips = parse_bool("skip_nonfinite", skip_nonfinite, among="True or False")
    parse_count("num_losses", num_losses)
    parse_count("hysteresis", hysteresis)
    prints = _parse_verbose(verbose, verbosity)
    if enabled and opt_level != "O0":
        check_backend(policy.half_dtype)

    def wrap_model(model: Any) -> Any:
        if is_module(model):
            return module_at(model, policy) if enabled else model
        if is_haiku(model):
            return HaikuModel(model, policy) if enabled else model
        apply_fn = find_apply_fn(model)
        if is_linen_apply(apply_fn):
            inside = policy if enabled else resolve_policy("O0")
            return LinenModel(apply_fn, inside, enabled=enabled)
        return MixedPrecisionApply(apply_fn, policy) if enabled else apply_fn

    def wrap_optimizer(tx: Any) -> Any:
        if is_nnx_optimizer(tx) and is_module(models):
            return optimizer_at(tx, wrap_optimizer(tx.tx), wrapped)
        scaled = loss_scaling(
            tx,
            policy.loss_scale if enabled else 1.0,
            min_loss_scale=policy.min_loss_scale,
            max_loss_scale=policy.max_loss_scale,
            hysteresis=hysteresis,
            num_losses=num_losses,
            skip_nonfinite=skips and enabled,
        )
        masters = enabled and policy.computes_in_half and policy.master_weights == "optimizer"
        return stepping_masters(scaled) if masters else scaled

    wrapped = _each(wrap_model, models)
    if optimizers is not None:
        wrapped = wrapped, _each(wrap_optimizer, optimizers)
    if prints and enabled:
        print(policy)
    return wrapped


def _parse_verbose(verbose: Any, verbosity: Any) -> bool:
    """Reads ``verbose``, and apex's name of it, which wins."""
    verbose = parse_bool("verbose", verbose, among="True or False")
    if not isinstance(verbosity, int | np.integer | None):
        raise ValueError(f"verbosity must be 0 or 1, not {verbosity!r}")
    return verbose if verbosity is None else bool(verbosity)


def _one_name(new: Any, old: Any) -> Any:
    if new is not None and old is not None and new != old:
        raise ValueError("patch_functions and patch_torch_functions contradict each other")
    return old if new is None else new


def _each(function: Callable[[Any], Any], items: Any) -> Any:
    """Maps over a plain list or tuple; an optax transformation is a tuple, but one item."""
    return type(items)(map(function, items)) if type(items) in (list, tuple) else function(items)
