"""The types that public signatures are written in.

Aliases that say what a value is for, where a type checker cannot: a ``PyTree`` may be anything.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import jax
from jax.typing import DTypeLike

__all__ = [
    "ApplyFn",
    "DTypeLike",
    "DrawFn",
    "HalfDType",
    "Key",
    "LossFn",
    "MatmulPrecision",
    "MemoryPolicy",
    "Mode",
    "Model",
    "OptLevel",
    "PRNGImpl",
    "Patterns",
    "PyTree",
    "Step",
]

PyTree: TypeAlias = Any
"""A nested container that JAX takes apart, with arrays as its leaves."""

Key: TypeAlias = jax.Array
"""A PRNG key, typed (``jax.random.key``) or legacy (``jax.random.PRNGKey``)."""

ApplyFn: TypeAlias = Callable[..., PyTree]
"""A model: ``apply_fn(params, *inputs)``."""


class Model(Protocol):
    """What is applied to variables: a linen module, or what ``haiku.transform`` returns."""

    @property
    def apply(self) -> Callable[..., Any]:
        """Applies it."""
        ...


LossFn: TypeAlias = Callable[..., jax.Array]
"""A loss: of ``(output)`` or ``(output, key)``, a real scalar."""

DrawFn: TypeAlias = Callable[..., PyTree]
"""What draws inputs: of ``(key)``, ``(key, batch_size)`` or ``(batch_size)``."""

Patterns: TypeAlias = str | Sequence[str] | None
"""One pattern over the leaves' paths or several; ``*`` is any text, ``/`` included."""

Mode: TypeAlias = Literal["fold", "explicit"]
"""Whether ``calibrate`` folds scales into parameters and multipliers, or keeps them beside."""

Step: TypeAlias = Literal["layer", "network"]
"""Whether a unit step is one of every layer alone, or of the whole network."""

OptLevel: TypeAlias = Literal["O0", "O1", "O2", "O3"]
"""A level of precision, as apex names them."""

HalfDType: TypeAlias = Literal["auto", "bfloat16", "float16", "bf16", "fp16"] | DTypeLike
"""The half type; ``auto`` chooses by the device."""

MemoryPolicy: TypeAlias = Literal["preallocate", "grow", "cuda_async", "vmm"]
"""How the memory of a GPU is taken."""

PRNGImpl: TypeAlias = Literal[
    "threefry2x32", "threefry4x32", "rbg", "unsafe_rbg", "philox2x32", "philox4x32"
]
"""The generator of JAX's keys."""

MatmulPrecision: TypeAlias = Literal[
    "default",
    "high",
    "highest",
    "bfloat16",
    "tensorfloat32",
    "float32",
    "ANY_F8_ANY_F8_F32",
    "ANY_F8_ANY_F8_F32_FAST_ACCUM",
    "ANY_F8_ANY_F8_ANY",
    "ANY_F8_ANY_F8_ANY_FAST_ACCUM",
    "F16_F16_F16",
    "F16_F16_F32",
    "BF16_BF16_BF16",
    "BF16_BF16_F32",
    "BF16_BF16_F32_X3",
    "BF16_BF16_F32_X6",
    "BF16_BF16_F32_X9",
    "TF32_TF32_F32",
    "TF32_TF32_F32_X3",
    "F32_F32_F32",
    "F64_F64_F64",
]
"""The precision of matrix products, as ``jax_default_matmul_precision`` takes it."""
