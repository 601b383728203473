"""The precision of matrix products and convolutions in float32."""

from importlib.util import find_spec

from jinit._jax_private import backend_is_up
from jinit._parsing import choice, optional
from jinit.settings.jax_options import option, set_option
from jinit.settings.platforms import unskipped
from jinit.settings.setting import Setting, Source

__all__ = ["PRECISION", "PRECISIONS", "PRESETS", "check_platform"]

PRESETS = (
    *("ANY_F8_ANY_F8_F32", "ANY_F8_ANY_F8_F32_FAST_ACCUM"),
    *("ANY_F8_ANY_F8_ANY", "ANY_F8_ANY_F8_ANY_FAST_ACCUM"),
    *("F16_F16_F16", "F16_F16_F32", "BF16_BF16_BF16", "BF16_BF16_F32"),
    *("BF16_BF16_F32_X3", "BF16_BF16_F32_X6", "BF16_BF16_F32_X9"),
    *("TF32_TF32_F32", "TF32_TF32_F32_X3", "F32_F32_F32", "F64_F64_F64"),
)
"""The algorithms of products that a backend may or may not have."""

PRECISIONS = ("default", "high", "highest", "bfloat16", "tensorfloat32", "float32", *PRESETS)
_ON_CPU = (
    *("F16_F16_F16", "BF16_BF16_F32", "BF16_BF16_F32_X3", "BF16_BF16_F32_X6"),
    *("F32_F32_F32", "F64_F64_F64"),
)
_WITH_TF32, _WITHOUT_TF32 = "default", "highest"
_OPTION = "jax_default_matmul_precision"
_parse = choice(PRECISIONS)


def check_platform(precision: str | None, platform: str | None) -> None:
    """Refuses a preset that float32 products cannot have where the process will run.

    Raises:
        ValueError: ``precision`` is a preset that the platform does not have.
    """
    if precision not in PRESETS:
        return
    on_cpu = _expected_platform(platform) == "cpu"
    if precision not in _ON_CPU if on_cpu else precision.startswith("ANY_F8"):
        raise ValueError(_unsupported(precision, "the CPU" if on_cpu else "any backend"))


def _expected_platform(platform: str | None) -> str:
    """The platform that is up or, as far as that can be told, will be."""
    import jax

    if backend_is_up():
        return jax.default_backend()
    others = find_spec("jax_plugins") or find_spec("libtpu")
    asked = platform or option("jax_platforms") or ("other" if others else "cpu")
    return next(iter(unskipped(asked)), asked)


def _confirm() -> None:
    """Compiles a float32 product if the precision is a preset, so that no later one fails.

    Raises:
        ValueError: The backend does not have the preset.
        RuntimeError: The product fails for another reason, such as a lack of memory.
    """
    import jax
    import jax.numpy as jnp

    precision = option(_OPTION)
    if precision not in PRESETS:
        return
    square = jax.ShapeDtypeStruct((16, 16), jnp.float32)
    try:
        jax.jit(jnp.dot).lower(square, square).compile()
    except Exception as error:
        kind = jax.devices()[0].device_kind
        if _says_that_it_is_missing(error, precision):
            raise ValueError(_unsupported(precision, kind)) from error
        raise RuntimeError(
            f"matmul_precision={precision!r} could not be tried on {kind}: remove what is in the "
            f"way, or choose 'high' or 'highest', which need no trial. JAX says: {error}"
        ) from error


def _says_that_it_is_missing(error: Exception, precision: str) -> bool:
    """Whether an error names the preset and is a refusal: of JAX, or of XLA as UNIMPLEMENTED."""
    refused = isinstance(error, ValueError) or str(error).startswith("UNIMPLEMENTED")
    return refused and precision in str(error)


def _unsupported(precision: str, where: str) -> str:
    return (
        f"matmul_precision={precision!r} is not to be had for float32 products on {where}: "
        "choose another, such as 'high' or 'highest', which every backend has."
    )


PRECISION = Setting(
    name="matmul_precision",
    variables=(
        Source("JINIT_MATMUL_PRECISION", _parse),
        Source("JINIT_ALLOW_TF32", choice({"0": _WITHOUT_TF32, "1": _WITH_TF32})),
    ),
    arguments=(
        Source("matmul_precision", optional(_parse)),
        Source("allow_tf32", choice({True: _WITH_TF32, False: _WITHOUT_TF32}), default=True),
    ),
    apply=lambda precision: set_option(_OPTION, precision),
    current=lambda: option(_OPTION),
    native=(_OPTION.upper(),),
    native_values=lambda precision: (precision,),
    yields=True,
    confirm=_confirm,
)
