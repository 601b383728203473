"""How JAX takes the memory of a GPU."""

import os

from jinit.settings.environment import set_variable
from jinit.settings.parsing import choice, optional
from jinit.settings.setting import Setting, Source

__all__ = ["MEMORY", "POLICIES"]

_PREALLOCATE = "XLA_PYTHON_CLIENT_PREALLOCATE"
_VARIABLES = (_PREALLOCATE, "XLA_PYTHON_CLIENT_ALLOCATOR")
POLICIES = {
    "preallocate": ("true", "bfc"),
    "grow": ("false", "bfc"),
    "cuda_async": ("false", "cuda_async"),
    "vmm": ("false", "vmm"),
}
"""Each policy in the words of the two variables that JAX reads when a GPU backend starts."""

_parse = choice(tuple(POLICIES))


def _apply(policy: str) -> None:
    for name, text in zip(_VARIABLES, POLICIES[policy], strict=True):
        set_variable(name, text)


def _spelling(name: str, text: str) -> str:
    """What JAX makes of a variable's text."""
    if name == _PREALLOCATE:
        return "false" if text in ("false", "False", "0") else "true"
    return text.lower().replace("default", "bfc")


def _current() -> str | None:
    """The policy that the variables amount to, or the variables where it has no name.

    JAX does not tell what it read when its backend started: a variable that the user has set
    since then is taken at its word.
    """
    texts = {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)}
    spelt = tuple(_spelling(name, text) for name, text in texts.items())
    named = [policy for policy, wanted in POLICIES.items() if spelt == wanted]
    return named[0] if named else " ".join(map("=".join, texts.items())) or None


MEMORY = Setting(
    name="memory",
    variables=(Source("JINIT_MEMORY", _parse),),
    arguments=(Source("memory", optional(_parse)),),
    apply=_apply,
    current=_current,
    native=_VARIABLES,
    native_values=POLICIES.__getitem__,
    spelling=_spelling,
    needs_fresh_backend=True,
)
