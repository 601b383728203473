"""The settings that are one option of JAX's configuration each: a table of them."""

import os
import re
from contextlib import suppress
from typing import Any

from jinit._jax_private import backend_is_up, register_plugins
from jinit._parsing import FLAG, SWITCH, Parser, choice, integer, optional, refusal
from jinit.settings.flags.text import read_flags
from jinit.settings.platforms import known_platforms, others_may_come, unskipped, written_out
from jinit.settings.setting import Choice, Setting, Source
from jinit.settings.undo import on_failure

__all__ = [
    "CPU_DEVICES",
    "DEBUG_KEY_REUSE",
    "DEBUG_NANS",
    "DEVICE_FLAG",
    "ENABLE_X64",
    "MAX_CPU_DEVICES",
    "PLATFORM",
    "PRNG_IMPL",
    "PRNG_IMPLS",
    "option",
    "set_option",
]

PRNG_IMPLS = ("threefry2x32", "threefry4x32", "rbg", "unsafe_rbg", "philox2x32", "philox4x32")
MAX_CPU_DEVICES = 1024
"""The most CPU devices that are asked for; some way above, a process dies for lack of threads."""


def option(name: str) -> Any:
    """The value of an option for the process; a block or a thread may have its own."""
    import jax

    return jax.config.values[name]


def set_option(name: str, value: Any) -> None:
    """Sets an option of JAX's configuration."""
    import jax

    before = option(name)
    on_failure(lambda: jax.config.update(name, before))
    jax.config.update(name, value)


def _option_setting(
    name: str, option_name: str, parse: Parser, parse_text: Parser, **details: Any
) -> Setting:
    """A setting whose argument, variable and option take the same values."""
    defaults: dict[str, Any] = {
        "current": lambda: option(option_name),
        "apply": lambda value: set_option(option_name, value),
        "native": (option_name.upper(),),
        "native_values": lambda value: (str(value),),
    }
    return Setting(
        name=name,
        variables=(Source(f"JINIT_{name.upper()}", parse_text),),
        arguments=(Source(name, optional(parse)),),
        **(defaults | details),
    )


def _switch(name: str, option_name: str) -> Setting:
    return _option_setting(
        name, option_name, SWITCH, FLAG, spelling=lambda variable, text: _truth(text)
    )


def _truth(text: str) -> str:
    """What JAX makes of a variable that is on or off."""
    return str(text.lower() in ("y", "yes", "t", "true", "on", "1"))


ENABLE_X64 = _switch("enable_x64", "jax_enable_x64")
DEBUG_NANS = _switch("debug_nans", "jax_debug_nans")
DEBUG_KEY_REUSE = _switch("debug_key_reuse", "jax_debug_key_reuse")

_parse_impl = choice(PRNG_IMPLS)
_IMPL_ADVICE = {
    "rbg": "rbg draws other numbers under vmap than in a loop, and may on another version of XLA",
    "unsafe_rbg": "unsafe_rbg splits keys by a rule that was not studied, and draws as rbg does",
    "philox2x32": "philox2x32 fails in programs that are sharded over several devices",
    "philox4x32": "philox4x32 fails in programs that are sharded over several devices",
}
PRNG_IMPL = _option_setting(
    "prng_impl",
    "jax_default_prng_impl",
    _parse_impl,
    _parse_impl,
    advice=lambda impl: _IMPL_ADVICE.get(impl, ""),
)


_PLATFORMS = re.compile(r"[^\s,]+(,[^\s,]+)*")
_LEGAL = "a platform such as 'cpu', 'gpu' or 'tpu', or several joined by commas"


def _parse_platform(name: str, value: object) -> str | None:
    """Parses platforms in the order of preference.

    An empty text leaves the choice to JAX, as in JAX_PLATFORMS.
    """
    if value == "":
        return None
    if not (isinstance(value, str) and _PLATFORMS.fullmatch(value)):
        raise ValueError(refusal(name, value, _LEGAL))
    return value


def _verify_platform(choice: Choice) -> None:
    """Refuses what is not installed; what a plugin brings that is not JAX's own, JAX will say."""
    if choice.value is None:
        return
    known, wanted = known_platforms(), unskipped(choice.value)
    missing = not set(wanted) <= set(known) and not others_may_come()
    if not wanted or missing:
        legal = ", ".join(map(repr, known))
        text = f"made of {legal}, the platforms that are installed here"
        raise ValueError(refusal(choice.source, choice.value, text))


def _apply_platform(chosen: str) -> None:
    set_option("jax_platforms", written_out(chosen))
    if "gpu" in chosen.split(","):
        register_plugins()  # those that cannot run here stay away, which is not known before
        set_option("jax_platforms", written_out(chosen))


def _current_platform() -> str | None:
    """The platform that is up, or the ones that are chosen."""
    import jax

    return jax.devices()[0].client.platform if backend_is_up() else option("jax_platforms")


def _is_platform_in_force(chosen: str) -> bool:
    running, names = _current_platform(), written_out(chosen)
    return names in (running, option("jax_platforms")) and str(running) in names.split(",")


PLATFORM = _option_setting(
    "platform",
    "jax_platforms",
    _parse_platform,
    _parse_platform,
    apply=_apply_platform,
    native_values=lambda chosen: (written_out(str(chosen)),),
    current=_current_platform,
    holds=_is_platform_in_force,
    needs_fresh_backend=True,
    verify=_verify_platform,
)

DEVICE_FLAG = "xla_force_host_platform_device_count"
_parse_count = integer(1, MAX_CPU_DEVICES)


def _devices_in(variable: str, text: str) -> str:
    """The count in a variable: XLA's flag is another way to ask for it."""
    if variable != "XLA_FLAGS":
        return text
    count = read_flags(text).flags.get(DEVICE_FLAG) or ""
    legal = count.isdecimal() and len(count) < 5 and 0 < int(count) <= MAX_CPU_DEVICES
    return count if legal else ""  # what is not legal will not be set


def _current_devices() -> int:
    """The devices that run, or before there are any, those that will."""
    import jax

    if backend_is_up():
        with suppress(RuntimeError):  # the CPU is not among the platforms
            return jax.local_device_count("cpu")
    asked = option("jax_num_cpu_devices")
    text = os.environ.get("XLA_FLAGS", "")
    return asked if asked > 0 else int(_devices_in("XLA_FLAGS", text) or 1)


def _verify_devices(choice: Choice) -> None:
    name, count = "jax_num_cpu_devices", option("jax_num_cpu_devices")
    if count != -1 and not backend_is_up():
        _parse_count(name.upper() if os.environ.get(name.upper()) else name, count)


CPU_DEVICES = _option_setting(
    "cpu_devices",
    "jax_num_cpu_devices",
    _parse_count,
    integer(1, MAX_CPU_DEVICES, text=True),
    current=_current_devices,
    native=("JAX_NUM_CPU_DEVICES", "XLA_FLAGS"),
    native_values=lambda count: (str(count), str(count)),
    spelling=_devices_in,
    needs_fresh_backend=True,
    verify=_verify_devices,
)
