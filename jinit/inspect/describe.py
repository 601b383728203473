"""``describe``: where the parameters of a model come from."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax import nnx

from jinit._arithmetic import bytes_of
from jinit._kinds import kind_of, model_kind
from jinit._plain import PlainData
from jinit._tables import format_bytes, format_count, format_table
from jinit.defaults.provenance.linen import read_linen
from jinit.defaults.provenance.nnx import read_nnx
from jinit.defaults.provenance.reading import UNKNOWN, Path, Reading
from jinit.empirical.user_functions import positional
from jinit.inspect.values import Values, measure_values
from jinit.modules.kinds import has_variables, lacks_variables
from jinit.typing import PyTree

__all__ = ["Description", "NormDescription", "ParameterDescription", "describe"]


@dataclass(frozen=True)
class ParameterDescription:
    """Where a parameter comes from.

    Attributes:
        path: Where it is, joined by ``/``.
        shape: Its shape.
        dtype: The name of its dtype.
        distribution: What it is drawn from, with the numbers for this shape.
        fans: ``fan_in`` and ``fan_out`` as its initializer counts them; None if it does not.
        decided_by: ``default`` (Flax's), ``keras``, ``torch`` or ``explicit``; ``-`` if unknown.
        mean: The mean of its values, of a module that holds them.
        std: Their standard deviation, likewise.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    distribution: str
    fans: tuple[float, float] | None
    decided_by: str
    mean: float | None = None
    std: float | None = None


@dataclass(frozen=True)
class NormDescription:
    """A number that a norm layer is applied with.

    Attributes:
        path: Where the layer is, joined by ``/``.
        field: ``epsilon`` or ``momentum``; the momentum is a decay.
        value: The number.
        decided_by: ``default`` (Flax's), ``keras``, ``torch`` or ``explicit``; ``-`` if unknown.
    """

    path: str
    field: str
    value: float
    decided_by: str


@dataclass(frozen=True)
class Description(PlainData):
    """Where the parameters of a model come from, and its norm layers' numbers.

    Attributes:
        parameters: One description a parameter.
        norms: One description a number.
        notes: What cannot be told: which layers, constructed outside the context, carry an object
            that is Flax's default and may have been passed as well, as ``zeros_init()``; or of a
            module that holds its values how they were drawn.
    """

    parameters: tuple[ParameterDescription, ...]
    norms: tuple[NormDescription, ...]
    notes: tuple[str, ...] = ()

    @property
    def numbers(self) -> int:
        """How many numbers the parameters are."""
        return sum(math.prod(each.shape) for each in self.parameters)

    @property
    def bytes(self) -> int:
        """How many bytes they are."""
        return sum(bytes_of(each.shape, jnp.dtype(each.dtype)) for each in self.parameters)

    def __str__(self) -> str:
        held = any(p.mean is not None for p in self.parameters)
        columns = ["parameter", "shape", "dtype", "distribution", "fans", "decided by"]
        parameters = format_table(
            [*columns, *([">mean", ">std"] if held else [])],
            [[*_cells(p), *(_moments(p) if held else [])] for p in self.parameters],
        )
        total = f"{format_count(self.numbers)} parameters, {format_bytes(self.bytes)}"
        norms = format_table(
            ["norm", "field", ">value", "decided by"],
            [[n.path, n.field, f"{n.value:g}", n.decided_by] for n in self.norms],
        )
        return "\n".join([parameters, total, *([norms] if self.norms else []), *self.notes])


def describe(
    model: "nn.Module | nnx.Module | Callable[[], nnx.Module] | PyTree",
    *inputs: PyTree,
    **kwargs: object,
) -> Description:
    """Describes every parameter of a model: what it is drawn from, and who decided that.

    Nothing is run. Call it where the model is initialized: inside ``keras_defaults``, or with a
    wrapped model. A module that holds its values, of NNX or Equinox, has forgotten how they were
    drawn: their mean and standard deviation are measured, and the fans found by tracing its call.

    Args:
        model: A Linen module; a function without arguments that constructs an NNX module; an NNX
            module itself; or an Equinox module.
        inputs: What a module is called on, arrays or ``jax.ShapeDtypeStruct``; one that holds its
            values needs none, but then has fans only where Flax's conventions tell.
        kwargs: Keyword arguments of the call, such as ``train=False``.

    Returns:
        The description: printed it is a table, ``to_dict()`` makes it plain data.

    Raises:
        TypeError: If ``model`` is none of these, inputs are given for a function, or a shape in
            their place.

    Example:
        >>> import jax.numpy as jnp, jinit
        >>> model = jinit.keras_defaults().wrap(nn.Dense(2, use_bias=False))
        >>> print(describe(model, jnp.ones((1, 4))))
          parameter   shape    dtype     distribution              fans   decided by
         ────────────────────────────────────────────────────────────────────────────
          kernel      (4, 2)   float32   uniform(low=-1, high=1)   4, 2   keras
        8 parameters, 32 B
    """
    if isinstance(model, nn.Module):
        _check_inputs(inputs)
        return _description(*read_linen(model, inputs, kwargs))
    if has_variables(model):
        _check_inputs(inputs)
        return _held(model, measure_values(model, inputs, kwargs))
    _check_model(model)
    if inputs or kwargs:
        raise TypeError(
            "describe takes inputs for a flax.linen module only; an NNX module knows its shapes"
        )
    if not isinstance(model, nnx.Module):
        _check_arguments(model)
    return _description(*read_nnx(model))


_FORGOTTEN = "a module that exists does not know what its values were drawn from; "
_CONSTRUCT = "describe(lambda: Net(nnx.Rngs(0))) says what its constructor draws"
_NO_CONSTRUCT = "mean and std are those of the values it holds"


def _held(model: Any, values: Mapping[str, Values]) -> Description:
    """Describes a module by what it holds."""
    of_nnx = isinstance(model, nnx.Module)
    known = _description(*read_nnx(model)) if of_nnx else Description((), ())
    flax = {each.path: each.fans for each in known.parameters}
    parameters = tuple(
        ParameterDescription(
            path, *found[:2], UNKNOWN, found.fans or flax.get(path), UNKNOWN, found.mean, found.std
        )
        for path, found in values.items()
    )
    note = _FORGOTTEN + (_CONSTRUCT if of_nnx else _NO_CONSTRUCT)
    return Description(parameters, known.norms, (note,))


def _check_model(model: Any) -> None:
    """Raises TypeError for what is neither a module nor a function that constructs one."""
    if lacks_variables(model):
        raise TypeError(
            f"describe takes a flax.linen module, an NNX module or a function that constructs "
            f"one, got Haiku's {type(model).__name__}; haiku.experimental.tabulate lists its "
            "parameters"
        )
    method = isinstance(getattr(model, "__self__", None), nn.Module)
    linen = isinstance(model, type) and issubclass(model, nn.Module)
    foreign = model_kind(model) is not None
    if (isinstance(model, nnx.Module) or callable(model)) and not (method or linen or foreign):
        return
    found = kind_of(model) if method or linen or foreign else type(model).__name__
    hint = "; pass the module itself" if method else "; pass an instance of it" if linen else ""
    raise TypeError(
        "describe takes a flax.linen module, an NNX module or a function that constructs one, "
        f"got {found}{hint}"
    )


def _check_inputs(inputs: tuple[Any, ...]) -> None:
    """Raises TypeError for a shape alone, which Flax would take for numbers."""
    shape = inputs[0] if len(inputs) == 1 else None
    if isinstance(shape, tuple) and shape and all(isinstance(n, int) for n in shape):
        raise TypeError(
            f"describe takes inputs as arrays or jax.ShapeDtypeStruct, got {shape!r}; for inputs "
            f"of this shape write jnp.ones({shape!r})"
        )


def _check_arguments(construct: Callable[..., Any]) -> None:
    """Raises TypeError for a function that cannot be called without arguments."""
    made_by = construct.__init__ if isinstance(construct, type) else construct
    needed = positional(made_by, ())[isinstance(construct, type) :]
    if needed:
        raise TypeError(
            "describe calls a function that constructs an NNX module without arguments, but "
            f"{kind_of(construct)} needs {', '.join(needed)}; pass a lambda that gives them"
        )


def _description(parameters: dict[Path, Any], reading: Reading) -> Description:
    return Description(
        tuple(_parameter(path, array, reading) for path, array in parameters.items()),
        tuple(
            NormDescription("/".join(path), name, *found)
            for path, numbers in reading.norms.items()
            for name, found in numbers.items()
        ),
        tuple(reading.notes),
    )


def _parameter(path: Path, array: Any, reading: Reading) -> ParameterDescription:
    drawn = reading.drawn.get(path, (UNKNOWN, None, UNKNOWN))
    return ParameterDescription("/".join(path), tuple(array.shape), str(array.dtype), *drawn)


def _moments(parameter: ParameterDescription) -> list[str]:
    return ["" if x is None else f"{x:.3g}" for x in (parameter.mean, parameter.std)]


def _cells(parameter: ParameterDescription) -> Sequence[str]:
    fans = ", ".join(f"{fan:g}" for fan in parameter.fans or ())
    return [
        *(parameter.path, str(parameter.shape), parameter.dtype, parameter.distribution),
        *(fans, parameter.decided_by),
    ]
