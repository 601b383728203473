"""How JAX takes the memory of a GPU."""

import os

from jinit._jax_private import gpu_options
from jinit._parsing import FLAG, choice, fraction, optional
from jinit.settings.environment import set_variable
from jinit.settings.setting import Setting, Source

__all__ = ["MEMORY", "MEMORY_FRACTION", "POLICIES"]

_PREALLOCATE = "XLA_PYTHON_CLIENT_PREALLOCATE"
_ALLOCATOR = "XLA_PYTHON_CLIENT_ALLOCATOR"
_VARIABLES = (_PREALLOCATE, _ALLOCATOR)
POLICIES = {
    "preallocate": ("true", "bfc"),
    "grow": ("false", "bfc"),
    "cuda_async": ("false", "cuda_async"),
    "vmm": ("false", "vmm"),
}
"""Each policy in the words of the two variables that a GPU's plugin reads, once, when JAX registers
it; that is a moment before the first backend starts, also where that one does not."""

EXPANDABLE = {True: ("cuda_async", "vmm"), False: ("preallocate", "grow")}
"""The policies that have expandable segments, and those that have not; the first is meant."""

_parse = choice(tuple(POLICIES))
_parse_expandable = choice({given: policies[0] for given, policies in EXPANDABLE.items()})


def _agree(stronger: str, weaker: str) -> bool:
    """Whether two policies both expand, or neither does."""
    return any({stronger, weaker} <= set(policies) for policies in EXPANDABLE.values())


def _apply(policy: str) -> None:
    for name, text in zip(_VARIABLES, POLICIES[policy], strict=True):
        set_variable(name, text)


def _spelling(name: str, text: str) -> str:
    """What JAX makes of a variable's text."""
    if name == _PREALLOCATE:
        return "false" if text in ("false", "False", "0") else "true"
    return text.lower().replace("default", "bfc")


def _current() -> str | None:
    """The policy that the variables amount to, or the variables where it has no name."""
    texts = _texts()
    spelt = tuple(_spelling(name, text) for name, text in texts.items())
    named = [policy for policy, wanted in POLICIES.items() if spelt == wanted]
    return named[0] if named else " ".join(map("=".join, texts.items())) or None


def _texts() -> dict[str, str]:
    """The variables that are set, or once a GPU's plugin has read them, those that it read."""
    read = gpu_options()
    if read is None:
        return {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)}
    allocator, preallocates = str(read["allocator"]), read.get("preallocate")
    if preallocates is not None:
        return {_PREALLOCATE: str(preallocates).lower(), _ALLOCATOR: allocator}
    return {} if allocator == "default" else {_ALLOCATOR: allocator}  # that of an unset variable


MEMORY = Setting(
    name="memory",
    variables=(
        Source("JINIT_MEMORY", _parse),
        Source(
            "JINIT_EXPANDABLE_SEGMENTS",
            lambda name, text: _parse_expandable(name, FLAG(name, text)),
        ),
    ),
    arguments=(
        Source("memory", optional(_parse)),
        Source("expandable_segments", optional(_parse_expandable)),
    ),
    apply=_apply,
    current=_current,
    agree=_agree,
    native=_VARIABLES,
    native_values=POLICIES.__getitem__,
    spelling=_spelling,
    needs_fresh_backend=True,
    needs_fresh_plugins=True,
)

_FRACTION = "XLA_CLIENT_MEM_FRACTION"
_OLD_FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"


def _as_fraction(name: str, text: str) -> str:
    try:
        return str(float(text))
    except ValueError:
        return text


def _current_fraction() -> float | str | None:
    read = gpu_options()
    if read is not None:
        return read.get("memory_fraction")
    text = os.environ.get(_FRACTION) or os.environ.get(_OLD_FRACTION)
    try:
        return float(text) if text else None
    except ValueError:
        return text


MEMORY_FRACTION = Setting(
    name="memory_fraction",
    variables=(Source("JINIT_MEMORY_FRACTION", fraction),),
    arguments=(Source("memory_fraction", optional(fraction)),),
    apply=lambda share: set_variable(_FRACTION, str(share)),
    current=_current_fraction,
    native=(_FRACTION, _OLD_FRACTION),
    native_values=lambda share: (str(share), str(share)),
    spelling=_as_fraction,
    needs_fresh_backend=True,
    needs_fresh_plugins=True,
)
