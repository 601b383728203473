"""Whether this jaxlib starts under given XLA flags, asked of a child process.

XLA ends the process at an unknown flag or a bad value, and some flags that it takes end it at the
first computation. So a child starts under the flags before this process does. What it answered is
kept in the user's cache by version of jaxlib: the same flags cost nothing the second time.
"""

import difflib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping

from jinit.settings.flags.names import flag_names
from jinit.settings.flags.remembered import remembered
from jinit.settings.flags.text import format_flags, split_flags
from jinit.settings.jax_options import DEVICE_FLAG, MAX_CPU_DEVICES

__all__ = ["UNCHECKED", "check_flags", "check_tpu_flags"]

UNCHECKED = "could not be checked here"

_GREATEST = {DEVICE_FLAG: MAX_CPU_DEVICES}
"""Values far above these keep the child starting threads until its time is up."""

_SECONDS = 120.0
_READ = "from jaxlib import xla_client; xla_client._xla.CompileOptions(); print('read', flush=True)"
_START = (
    f"{_READ}; import jax; jax.random.bits(jax.random.key(0)).block_until_ready(); "
    "print('started', flush=True)"
)
_HANGS = f"keeps a small program from ending within {_SECONDS:.0f} s"
_CHILD = "_JINIT_CHECKS_FLAGS"
_ENDS = "ends the process at its first computation"
_NOT_FOR_THE_CHILD = ("JAX_", "JINIT_", "XLA_", "LIBTPU_INIT_ARGS", "PYTHON")
_UNKNOWN = re.compile(r"Unknown flags? in XLA_FLAGS: (.*)", re.DOTALL)
_BAD_VALUE = re.compile(r"Couldn't interpret value .* for flag (\w+)\.", re.DOTALL)


def check_flags(flags: Mapping[str, str | None]) -> dict[str, str]:
    """Finds the flags without which this jaxlib starts under the others.

    Args:
        flags: Each flag's value by its name; None is a flag without a value.

    Returns:
        What is wrong with each flag that must not be set, by its name, as the end of a sentence.
    """
    # Any text is a folder to dump to, it may differ on every run, and the child dumps elsewhere.
    anywhere = {"xla_dump_to": os.devnull} if flags.get("xla_dump_to") else {}
    return _answer("jaxlib", {**flags, **anywhere}, _find_faults)


def check_tpu_flags(flags: Mapping[str, str | None]) -> dict[str, str]:
    """Finds the flags whose names the TPU's library does not hold; it is not asked to start."""
    return _answer("libtpu", flags, _find_unknown_to_libtpu)


def _answer(
    package: str,
    flags: Mapping[str, str | None],
    find_faults: Callable[[Mapping[str, str | None]], dict[str, str]],
) -> dict[str, str]:
    """What an earlier run found out about the flags, or what is found out now."""
    if not flags:
        return {}
    key = format_flags(dict(sorted(flags.items())))
    with remembered(package) as memory:
        if key not in memory:
            faults = find_faults(flags)
            if not {UNCHECKED, _HANGS}.isdisjoint(faults.values()):
                return faults  # which another time may be otherwise
            memory[key] = faults
        return memory[key]


def _find_unknown_to_libtpu(flags: Mapping[str, str | None]) -> dict[str, str]:
    names = flag_names("libtpu")
    if not names:
        return dict.fromkeys(flags, UNCHECKED)
    return {name: "is not known to this libtpu" for name in flags if name not in names}


def _find_faults(flags: Mapping[str, str | None]) -> dict[str, str]:
    """Starts under the flags, each time without those that were found at fault, until it starts.

    Of ``--a=1 --no_such=2 --b=bad --c=3``, where the first computation ends under c::

        a, no_such, b, c    "Unknown flag in XLA_FLAGS"     XLA names no_such
        a, b, c             "Couldn't interpret value"      XLA names b
        a, c                ends without a word             a alone starts: it is c
        a                   starts
    """
    faults = _too_great(flags)
    rest = {name: value for name, value in flags.items() if name not in faults}
    while answer := _ask(_START, rest):
        if not rest or answer == UNCHECKED:  # it is not the flags
            return dict.fromkeys(flags, UNCHECKED)
        faults |= _named(answer, rest) or _culprit(answer, rest)
        rest = {name: value for name, value in rest.items() if name not in faults}
    return faults


def _too_great(flags: Mapping[str, str | None]) -> dict[str, str]:
    given = {name: flags.get(name) or "" for name in _GREATEST}
    return {
        name: f"is more than {_GREATEST[name]}"
        for name, text in given.items()
        if text.isdecimal() and int(text[:20]) > _GREATEST[name]
    }


def _ask(program: str, flags: Mapping[str, str | None]) -> str:
    """Runs a program under flags; returns how it failed, nothing where it did not."""
    if _CHILD in os.environ or getattr(sys, "frozen", False):
        return UNCHECKED  # an executable that is no Python would start itself, again and again
    try:
        child = _run(program, flags)
    except subprocess.TimeoutExpired:
        return _HANGS
    except (OSError, ValueError, TypeError):
        return UNCHECKED
    words = child.stdout.split()
    if child.returncode == 0:
        return "" if words[-1:] == [b"started" if program is _START else b"read"] else UNCHECKED
    if words[:1] == [b"read"]:
        return _ENDS
    return child.stderr.decode(errors="replace") or UNCHECKED


def _run(program: str, flags: Mapping[str, str | None]) -> "subprocess.CompletedProcess[bytes]":
    with tempfile.TemporaryDirectory() as dumps:
        return subprocess.run(
            [sys.executable, "-P", "-c", program],  # -P: nothing is imported from where we run
            env=_child_environment(_dumping_to(dumps, flags)),
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_SECONDS,
            check=False,
        )


def _dumping_to(folder: str, flags: Mapping[str, str | None]) -> dict[str, str | None]:
    """The flags, with whatever they dump kept out of the user's way."""
    dumped = any(name.startswith("xla_dump") for name in flags)
    named = flags.get("xla_dump_to", "") is not None
    return {**flags, "xla_dump_to": folder} if dumped and named else dict(flags)


def _child_environment(flags: Mapping[str, str | None]) -> dict[str, str]:
    kept = {k: text for k, text in os.environ.items() if not k.startswith(_NOT_FOR_THE_CHILD)}
    path = os.pathsep.join(entry for entry in sys.path if isinstance(entry, str) and entry)
    ours = {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": format_flags(flags)}
    return {**kept, **ours, _CHILD: "1"}


def _named(answer: str, flags: Mapping[str, str | None]) -> dict[str, str]:
    """The flags that XLA itself called a fault."""
    if unknown := _UNKNOWN.search(answer):
        names = split_flags(unknown[1]).flags
        return {name: _unknown(name, flags[name]) for name in names if name in flags}
    if (bad := _BAD_VALUE.search(answer)) and bad[1] in flags:
        return {bad[1]: f"does not take the value {flags[bad[1]]!r}"}
    return {}


def _unknown(name: str, value: str | None) -> str:
    if value is None and _is_known(name):
        return "needs a value"
    nearest = _nearest(name)
    return (
        f"is not known to this jaxlib; the nearest one is --{nearest}"
        if nearest
        else ("is not known to this jaxlib")
    )


def _nearest(name: str) -> str:
    alike = difflib.get_close_matches(name, flag_names("jaxlib"), n=3)
    return next(filter(_is_known, alike), "")


def _is_known(name: str) -> bool:
    return not _UNKNOWN.search(_ask(_READ, {name: "1"}))


def _culprit(answer: str, flags: Mapping[str, str | None]) -> dict[str, str]:
    """The flag that, added to those before it, makes the start fail."""
    begun: dict[str, str | None] = {}
    for name, value in flags.items():
        begun[name] = value
        if len(begun) == len(flags) or _ask(_START, begun):
            refused = "Flag parsing failed" in answer
            return {name: f"does not take the value {value!r}" if refused else answer}
    return {}
