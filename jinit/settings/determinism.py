"""Results that are the same, bit for bit, on every run."""

import warnings

from jinit._parsing import FLAG, SWITCH
from jinit.settings.flags.plan import AskedFlag, plan_flags, present_flags
from jinit.settings.flags.text import read_flags, same_value
from jinit.settings.setting import Setting, Source
from jinit.settings.undo import all_or_nothing

__all__ = ["DETERMINISTIC", "DETERMINISTIC_FLAGS", "configure_deterministic_mode"]

DETERMINISTIC_FLAGS = {"xla_gpu_deterministic_ops": "true"}
"""What makes a GPU repeat itself; it turns autotuning off as well. CPUs and TPUs need nothing."""

_ADVICE = "deterministic mode costs speed on a GPU, in scatters most of all"


_OFF = {"xla_gpu_deterministic_ops": "false"}


def _current() -> bool:
    flags = present_flags()
    return all(
        name in flags and same_value(flags[name].value, text)
        for name, text in DETERMINISTIC_FLAGS.items()
    )


def _spelling(variable: str, text: str) -> str:
    """Whether the user's flags are the deterministic ones; nothing where they do not say."""
    flags = read_flags(text).flags
    named = [flags[name] for name in DETERMINISTIC_FLAGS if name in flags]
    return str(all(same_value(value, "true") for value in named)) if named else ""


DETERMINISTIC = Setting(
    name="deterministic",
    variables=(Source("JINIT_DETERMINISTIC", FLAG),),
    arguments=(
        # False is the default, which leaves alone what the user's flags say.
        Source("deterministic", lambda name, value: SWITCH(name, value) or None, default=False),
    ),
    apply=lambda wanted: None,
    current=_current,
    native=("XLA_FLAGS",),
    native_values=lambda wanted: (str(wanted),),
    spelling=_spelling,
    flags=lambda wanted: DETERMINISTIC_FLAGS if wanted else _OFF,
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
    with all_or_nothing():
        plan.apply()
