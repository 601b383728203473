"""Results that are the same, bit for bit, on every run."""

import os
import warnings

from jinit.settings.flag_plan import AskedFlag, plan_flags
from jinit.settings.flag_text import split_flags
from jinit.settings.parsing import FLAG, SWITCH
from jinit.settings.setting import Setting, Source

__all__ = ["DETERMINISTIC", "DETERMINISTIC_FLAGS", "configure_deterministic_mode"]

DETERMINISTIC_FLAGS = {"xla_gpu_deterministic_ops": "true"}
"""What makes a GPU repeat itself; it turns autotuning off as well. CPUs and TPUs need nothing."""

_ADVICE = "deterministic mode costs speed on a GPU, in scatters most of all"


def _current() -> bool:
    flags = split_flags(os.environ.get("XLA_FLAGS", "")).flags
    return all(flags.get(name) == text for name, text in DETERMINISTIC_FLAGS.items())


DETERMINISTIC = Setting(
    name="deterministic",
    variables=(Source("JINIT_DETERMINISTIC", FLAG),),
    arguments=(Source("deterministic", SWITCH, default=False),),
    apply=lambda wanted: None,
    current=_current,
    flags=lambda wanted: DETERMINISTIC_FLAGS if wanted else {},
    advice=lambda wanted: _ADVICE if wanted else "",
)


def configure_deterministic_mode() -> None:
    """Makes every run give the same bits, as ``startup(deterministic=True)`` does.

    For programs that do not call ``startup``. On a GPU it sets ``xla_gpu_deterministic_ops`` in
    XLA_FLAGS; CPUs and TPUs repeat themselves as they are, on the same number of threads and
    devices.

    Raises:
        RuntimeError: JAX's backend is up, so that it is too late; or the user's XLA_FLAGS forbid
            it, or this jaxlib does not take the flag. Nothing is changed.

    Warns:
        UserWarning: Each time, since it costs speed.

    Example:
        Before the first JAX operation ``configure_deterministic_mode()`` sets these flags.

        >>> DETERMINISTIC_FLAGS
        {'xla_gpu_deterministic_ops': 'true'}

    Source:
        ``composer.utils.reproducibility.configure_deterministic_mode``, which warns likewise.
    """
    name = "configure_deterministic_mode"
    asked = {flag: AskedFlag(text, "argument", name) for flag, text in DETERMINISTIC_FLAGS.items()}
    plan = plan_flags(asked)
    status = plan.status(DETERMINISTIC_FLAGS)
    if status not in ("applied", "unchanged"):
        raise RuntimeError(
            f"Deterministic mode cannot be had, its flags {DETERMINISTIC_FLAGS} are {status}: "
            "call it before the first JAX operation, without other values of them in XLA_FLAGS."
        )
    warnings.warn(f"{_ADVICE}.", stacklevel=2)
    plan.apply()
