"""The precision of matrix products and convolutions in float32."""

from jinit.settings.parsing import choice, optional
from jinit.settings.setting import Setting, Source

__all__ = ["PRECISION", "PRECISIONS"]

PRECISIONS = (
    *("default", "high", "highest", "bfloat16", "tensorfloat32", "float32"),
    *("ANY_F8_ANY_F8_F32", "ANY_F8_ANY_F8_F32_FAST_ACCUM"),
    *("ANY_F8_ANY_F8_ANY", "ANY_F8_ANY_F8_ANY_FAST_ACCUM"),
    *("F16_F16_F16", "F16_F16_F32", "BF16_BF16_BF16", "BF16_BF16_F32"),
    *("BF16_BF16_F32_X3", "BF16_BF16_F32_X6", "BF16_BF16_F32_X9"),
    *("TF32_TF32_F32", "TF32_TF32_F32_X3", "F32_F32_F32", "F64_F64_F64"),
)
_WITH_TF32, _WITHOUT_TF32 = "default", "highest"
_OPTION = "jax_default_matmul_precision"
_parse = choice(PRECISIONS)


def _current() -> str | None:
    import jax

    return getattr(jax.config, _OPTION)


def _apply(precision: str) -> None:
    import jax

    jax.config.update(_OPTION, precision)


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
    apply=_apply,
    current=_current,
    native=(_OPTION.upper(),),
    native_values=lambda precision: (precision,),
    yields=True,
    caveat="a value set for the current block or thread is stronger",
)
