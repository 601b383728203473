"""What a setting is: the ways to ask for it, and how it is read and applied."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jinit.settings._jax_private import backend_is_up
from jinit.settings.environment import user_value
from jinit.settings.parsing import Parser

Origin = Literal["argument", "environment", "default"]
Status = Literal["applied", "unchanged", "too late", "overridden by the environment"]


@dataclass(frozen=True)
class Source:
    """One way to ask for a setting: an argument of ``startup`` or a ``JINIT_*`` variable.

    Attributes:
        name: The argument or variable.
        parse: Turns what was given into the setting's value, None where nothing is asked for.
        default: The argument's default.
    """

    name: str
    parse: Parser
    default: Any = None


@dataclass(frozen=True)
class Choice:
    """A validated value, None where nothing is asked for, and who asked for it."""

    value: Any
    origin: Origin
    source: str


@dataclass(frozen=True)
class Setting:
    """One concern of the process.

    Attributes:
        name: What the report calls it.
        variables: The ``JINIT_*`` variables, the strongest first; they override the arguments.
        arguments: The arguments of ``startup``, the strongest first.
        apply: Puts a value in force.
        current: The value in force, None where that is JAX's own choice; for a setting that
            cannot be read back there is no function, and it is applied each time.
        fallback: The value where nothing is asked for.
        native: The environment variables that JAX itself reads; one set by the user wins.
        native_values: What a value means in these variables, in their order.
        spelling: Brings a native variable's name and text to the text that ``native_values`` has.
        needs_fresh_backend: Whether it does nothing once the backend is up.
        caveat: Why the value in force may differ from the one applied.
    """

    name: str
    variables: tuple[Source, ...]
    arguments: tuple[Source, ...]
    apply: Callable[[Any], None]
    current: Callable[[], Any] | None = None
    fallback: Callable[[], Any] = lambda: None
    native: tuple[str, ...] = ()
    native_values: Callable[[Any], tuple[str, ...]] = lambda value: ()
    spelling: Callable[[str, str], str] = lambda name, text: text
    needs_fresh_backend: bool = False
    yields: bool = False
    caveat: str = ""

    def choose(self, arguments: Mapping[str, Any]) -> Choice:
        """Validates everything that was given and picks the strongest that asks for something."""
        choices = [
            Choice(source.parse(source.name, os.environ[source.name]), "environment", source.name)
            for source in self.variables
            if source.name in os.environ
        ]
        for source in self.arguments:
            given = arguments[source.name]
            value = source.parse(source.name, given)
            asked_by = ("default", "") if given is source.default else ("argument", source.name)
            choices.append(Choice(value, *asked_by))
        asked = [choice for choice in choices if choice.value is not None]
        return asked[0] if asked else Choice(self.fallback(), "default", "")

    def status(self, value: Any) -> Status:
        """What becomes of a value that is asked for now; None asks for nothing."""
        if value is None or (self.current is not None and self.current() == value):
            return "unchanged"
        if self.conflicts(value):
            return "overridden by the environment"
        if self.needs_fresh_backend and backend_is_up():
            return "too late"
        return "applied"

    def effective(self, applied: Any) -> Any:
        """The value in force after ``applied`` was put in force."""
        return applied if self.current is None else self.current()

    def user_variables(self) -> dict[str, str]:
        """The native variables that the user has set."""
        texts = {name: user_value(name) for name in self.native}
        return {name: self.spelling(name, text) for name, text in texts.items() if text}

    def conflicts(self, value: Any) -> bool:
        """Whether the user has set a native variable to something else than ``value`` means."""
        wanted = dict(zip(self.native, self.native_values(value), strict=True))
        return any(text != wanted[name] for name, text in self.user_variables().items())
