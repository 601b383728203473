"""The settings that are one option of JAX's configuration each: a table of them."""

import os
from typing import Any

from jinit.settings._jax_private import backend_is_up, registered_platforms
from jinit.settings.flag_text import split_flags
from jinit.settings.parsing import FLAG, SWITCH, Parser, choice, integer, optional, refusal
from jinit.settings.setting import Setting, Source
from jinit.settings.undo import on_failure

__all__ = [
    "CPU_DEVICES",
    "DEBUG_KEY_REUSE",
    "DEBUG_NANS",
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
    """The value of an option of JAX's configuration."""
    import jax

    return getattr(jax.config, name)


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


def _parse_platform(name: str, value: object) -> str:
    """Parses a platform, or several in the order of preference, that this machine could start."""
    registered = registered_platforms()
    gpus = [platform for platform in ("cuda", "rocm", "oneapi") if platform in registered]
    meanings = {platform: [platform] for platform in registered} | ({"gpu": gpus} if gpus else {})
    names = value.split(",") if isinstance(value, str) else [None]
    if not all(platform in meanings for platform in names):
        legal = ", ".join(map(repr, meanings))
        raise ValueError(refusal(name, value, f"one of {legal}, or several joined by commas"))
    return ",".join(platform for each in names if each for platform in meanings[each])


def _current_platform() -> str | None:
    import jax

    chosen = option("jax_platforms")
    return chosen or (jax.default_backend() if backend_is_up() else None)


PLATFORM = _option_setting(
    "platform",
    "jax_platforms",
    _parse_platform,
    _parse_platform,
    current=_current_platform,
    needs_fresh_backend=True,
)

_DEVICE_FLAG = "xla_force_host_platform_device_count"
_parse_count = integer(1, MAX_CPU_DEVICES)


def _devices_in(variable: str, text: str) -> str:
    """The count in a variable: XLA's flag is another way to ask for it."""
    return split_flags(text).flags.get(_DEVICE_FLAG) or "" if variable == "XLA_FLAGS" else text


def _current_devices() -> int | None:
    count = option("jax_num_cpu_devices")
    text = _devices_in("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
    return count if count > 0 else int(text) if text.isdecimal() else 1


def _verify_devices() -> None:
    name, count = "jax_num_cpu_devices", option("jax_num_cpu_devices")
    if count != -1:
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
