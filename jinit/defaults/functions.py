"""The public functions: the defaults of Keras and torch, for a context or for a process."""

import math
from collections.abc import Callable

from jinit._kinds import is_number
from jinit._known import known_arguments
from jinit.defaults.contexts import applied_everywhere
from jinit.defaults.layer_defaults import LayerDefaults
from jinit.defaults.refusals import class_name
from jinit.defaults.tables.systems import System, table_of
from jinit.defaults.undo import Undo

__all__ = ["global_keras_initializers", "keras_defaults", "torch_defaults"]

Check = tuple[str, Callable[[float], bool]]

DECAY: Check = "a decay in [0, 1]", lambda momentum: 0 <= momentum <= 1
SHARE: Check = "the weight of a new batch, in [0, 1]", DECAY[1]
EPSILON: Check = "a positive number", lambda epsilon: 0 < epsilon < math.inf


@known_arguments
def keras_defaults(
    parameter_initialization: bool = True,
    batchnorm_momentum: float | None = 0.99,
    norm_epsilon: float | None = 1e-3,
) -> LayerDefaults:
    r"""Gives Flax's layers the defaults of Keras.

    Kernels are drawn from :math:`U(-l, l)`, :math:`l = \sqrt{6 / (\text{fan\_in} +
    \text{fan\_out})}`, embeddings from U(-0.05, 0.05). The gates of a recurrent cell are drawn
    as one matrix, the kernels of its state as one orthogonal matrix, and the bias of LSTM's
    forget gate is 1. PReLU begins with slope 0. Norm layers take Keras's epsilon, BatchNorm its
    momentum. ``print(keras_defaults().table)`` lists every layer, of ``flax.linen``, its
    ``layers_with_named_axes`` and ``flax.nnx``, and ``jinit.defaults.register`` adds one's own.
    Torch's Bilinear and EmbeddingBag, which minnt's table has, are no layers of Flax, and so
    have no row; ``initializers.bilinear`` gives Bilinear's fans.

    Used as ``with keras_defaults(): ...``, as ``keras_defaults()(model.init)``, and as
    ``keras_defaults().wrap(model)``. NNX layers take them when they are constructed: inside
    ``with``, by a function that constructs them, ``keras_defaults()(build)()``, and by a class that
    is decorated or wrapped, ``keras_defaults()(Net)(rngs=rngs)``.

    What was passed to a layer explicitly is never replaced, a partitioned initializer neither, nor
    Flax's own default where it is passed to a layer that is constructed inside, as in
    ``bias_init=nn.initializers.zeros_init()``: it counts as explicit, also where a module hands on
    the default of its own field, or sets it in ``__post_init__``. Of a Linen layer that was
    constructed outside, as a model that is wrapped, this one object cannot be told from nothing,
    and ``describe`` notes it; a layer that was pickled and loaded counts as explicit. For an NNX
    layer all arguments that the constructor is given are explicit.

    Epsilon and momentum count when a layer is applied. An NNX layer keeps those that it was
    constructed with. For a Linen model, ``apply`` must run inside as well: with ``wrap`` all
    methods of the model do, though not a layer of it that is called from outside, as in
    ``model.bind(variables).layer(x)``; the first two forms warn, once per class of model, when
    they initialize a model whose norm layers would fall back at apply. Of nested contexts the
    innermost alone is active. A context belongs to its thread and its task: tasks of asyncio that
    begin inside inherit it, others never see it. Functions that were traced under other defaults
    are traced again. Of event loops other than asyncio's own, jit's caches do not know the tasks:
    there, leave a context before an ``await``. The layers of Haiku and Equinox are left alone;
    ``initializers.reinit`` draws their leaves anew.

    Args:
        parameter_initialization: Whether parameters are drawn as in Keras.
        batchnorm_momentum: The decay of BatchNorm's running statistics, in [0, 1] (torch's
            momentum is 1 minus this); None leaves Flax's.
        norm_epsilon: What BatchNorm, LayerNorm, GroupNorm and InstanceNorm add to the variance,
            positive; None leaves Flax's.

    Returns:
        The defaults, to be entered, called on a function, or wrapped around a module.

    Raises:
        ValueError: If the momentum or epsilon is out of range.
        TypeError: If ``parameter_initialization`` is no bool, but the function to decorate, or the
            momentum or epsilon is no number.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> with keras_defaults():
        ...     variables = nn.Dense(128).init(jax.random.key(0), jnp.ones((1, 64)))
        >>> limit = (6 / (64 + 128)) ** 0.5
        >>> bool(0.99 * limit < abs(variables["params"]["kernel"]).max() < limit)
        True

    Source:
        Keras 3.15's layers.
    """
    return _defaults("keras", parameter_initialization, batchnorm_momentum, norm_epsilon)


@known_arguments
def torch_defaults(
    parameter_initialization: bool = True,
    batchnorm_momentum: float | None = 0.9,
    norm_epsilon: float | None = 1e-5,
) -> LayerDefaults:
    r"""Gives Flax's layers the defaults of torch.

    Kernels and biases are drawn from :math:`U(-b, b)`, :math:`b = 1/\sqrt{\text{fan\_in}}`, of
    recurrent cells :math:`b = 1/\sqrt{\text{hidden}}`; embeddings from N(0, 1); attention's
    queries, keys and values Xavier uniform as one matrix, its biases 0. PReLU begins with slope
    0.25. Where torch adds two biases, Flax's cells have one, drawn as one of torch's. Layers
    that torch lacks, DenseGeneral, Einsum and ConvLocal, are drawn like its Linear over what they
    sum; MGUCell's biases and RMSNorm's epsilon are left alone.

    It is used as ``keras_defaults`` is, and has the same limits.

    Args:
        parameter_initialization: Whether parameters are drawn as in torch.
        batchnorm_momentum: The decay of BatchNorm's running statistics, in [0, 1]: torch's
            momentum of 0.1 is a decay of 0.9; None leaves Flax's.
        norm_epsilon: What BatchNorm, LayerNorm, GroupNorm and InstanceNorm add to the variance,
            positive; None leaves Flax's.

    Returns:
        The defaults, to be entered, called on a function, or wrapped around a module.

    Raises:
        ValueError: If the momentum or epsilon is out of range.
        TypeError: If ``parameter_initialization`` is no bool, but the function to decorate, or the
            momentum or epsilon is no number.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> with torch_defaults():
        ...     variables = nn.Dense(512).init(jax.random.key(0), jnp.ones((1, 64)))
        >>> round(float(abs(variables["params"]["bias"]).max()), 2)  # 1 / sqrt(64)
        0.12

    Source:
        The documentation of ``torch.nn``, version 2.13.
    """
    return _defaults("torch", parameter_initialization, batchnorm_momentum, norm_epsilon)


@known_arguments
def global_keras_initializers(
    parameter_initialization: bool = True,
    batchnorm_momentum_override: float | None = 0.01,
    norm_layer_epsilon_override: float | None = 0.001,
) -> Undo:
    """Gives Flax's layers the defaults of Keras in the whole process, in all its threads.

    It is ``keras_defaults`` for a program that never leaves it, under the name and with the
    conventions of minnt. Epsilon and momentum hold at apply, too. A task's or a thread's own
    context goes before it; of several calls the newest counts. Like every context it reaches
    Linen modules through a method that Flax does not document; a test of jinit tells when a new
    version of Flax has lost it.

    Args:
        parameter_initialization: Whether parameters are drawn as in Keras.
        batchnorm_momentum_override: The momentum as torch counts it, the weight of a new batch,
            in [0, 1]: 0.01 is Flax's decay of 0.99; None leaves Flax's.
        norm_layer_epsilon_override: What norm layers add to the variance, positive; None leaves
            Flax's.

    Returns:
        The undo: call it, or use it as a context manager.

    Raises:
        ValueError: If the momentum or epsilon is out of range.
        TypeError: If ``parameter_initialization`` is no bool, or another argument no number.

    Example:
        >>> import flax.nnx as nnx
        >>> undo = global_keras_initializers()
        >>> nnx.LayerNorm(8, rngs=nnx.Rngs(0)).epsilon
        0.001
        >>> undo()
        >>> nnx.LayerNorm(8, rngs=nnx.Rngs(0)).epsilon
        1e-06

    Source:
        minnt's ``global_keras_initializers``.
    """
    _check_bool(parameter_initialization, "keras_defaults")
    share = _number("batchnorm_momentum_override", batchnorm_momentum_override, SHARE)
    epsilon = _number("norm_layer_epsilon_override", norm_layer_epsilon_override, EPSILON)
    # Rounded, for 1 - 0.01 and 0.99 should be one table.
    decay = None if share is None else round(1 - share, 15)
    return applied_everywhere(table_of("keras", parameter_initialization, decay, epsilon))


def _defaults(
    system: System, initialization: bool, momentum: float | None, epsilon: float | None
) -> LayerDefaults:
    name = f"{system}_defaults"
    _check_bool(initialization, name)
    arguments = {
        "parameter_initialization": initialization,
        "batchnorm_momentum": _number("batchnorm_momentum", momentum, DECAY),
        "norm_epsilon": _number("norm_epsilon", epsilon, EPSILON),
    }
    return LayerDefaults(table_of(system, **arguments), name, arguments)


def _check_bool(value: object, name: str) -> None:
    if not isinstance(value, bool):
        raise TypeError(
            f"parameter_initialization is a bool, got {class_name(value)}; "
            f"to decorate a function write {name}()(function)"
        )


def _number(name: str, value: float | None, check: Check) -> float | None:
    """Returns an optional argument as a Python float, once it is found legal."""
    meaning, legal = check
    if value is None:
        return None
    if not is_number(value) and getattr(value, "shape", None) != ():
        raise TypeError(f"{name} is {meaning} or None, got {value!r}")
    if not legal(value):
        raise ValueError(f"{name} is {meaning} or None, got {value!r}")
    return float(value)
