"""What a setting is: the ways to ask for it, and how it is read and applied."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jinit._jax_private import backend_is_up, plugins_are_registered
from jinit._parsing import Parser
from jinit.settings.environment import user_value

__all__ = ["Choice", "Origin", "Setting", "Source", "Status"]

Origin = Literal["argument", "environment", "default"]
Status = Literal["applied", "unchanged", "too late", "overridden by the environment", "refused"]


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

    @property
    def asked(self) -> Any:
        """What somebody asked for; a default is nobody's wish."""
        return None if self.origin == "default" else self.value


@dataclass(frozen=True)
class Setting:
    """One concern of the process.

    Attributes:
        name: What the report calls it.
        variables: The ``JINIT_*`` variables, the strongest first; they override the arguments.
        arguments: The arguments of ``startup``, the strongest first.
        apply: Applies a value.
        current: The active value, None where that is JAX's own choice; for a setting that
            cannot be read back there is no function, and it is applied each time.
        holds: Whether a value is active already; by default, whether it is the current one.
        fallback: The value where nothing is asked for.
        agree: Whether the stronger of two sources may stand beside the weaker; where it may not,
            both given together are an error.
        native: The environment variables that JAX itself reads; one set by the user wins.
        native_values: What a value means in these variables, in their order.
        spelling: Brings a native variable's name and text to the text that ``native_values`` has;
            empty where the text says nothing about the setting.
        flags: For a setting that is made of XLA flags, which a value means; it is the plan of
            flags that applies them.
        needs_fresh_backend: Whether it does nothing once the backend is up.
        needs_fresh_plugins: Whether it does nothing already once JAX has registered its plugins.
        yields: Whether the default gives way to what the user's code had set before.
        verify: Refuses a choice that cannot be applied, and what the environment holds
            where the backend could not start with it.
        confirm: Refuses what is active where the backend, once it is up, does not take it.
        advice: What to know about a value that was applied.
        caveat: Why the active value may differ from the one applied.
    """

    name: str
    variables: tuple[Source, ...]
    arguments: tuple[Source, ...]
    apply: Callable[[Any], None]
    current: Callable[[], Any] | None = None
    holds: Callable[[Any], bool] | None = None
    fallback: Callable[[], Any] = lambda: None
    agree: Callable[[Any, Any], bool] = lambda stronger, weaker: True
    native: tuple[str, ...] = ()
    native_values: Callable[[Any], tuple[str, ...]] = lambda value: ()
    spelling: Callable[[str, str], str] = lambda name, text: text
    flags: Callable[[Any], Mapping[str, str]] | None = None
    needs_fresh_backend: bool = False
    needs_fresh_plugins: bool = False
    yields: bool = False
    verify: Callable[[Choice], None] = lambda choice: None
    confirm: Callable[[], None] = lambda: None
    advice: Callable[[Any], str] = lambda value: ""
    caveat: str = ""

    def choose(self, arguments: Mapping[str, Any]) -> Choice:
        """Validates everything that was given and picks the strongest that asks for something."""
        choices = [*self._variables_given(), *self._arguments_given(arguments)]
        asked = [choice for choice in choices if choice.value is not None]
        self._check_agreement([choice for choice in asked if choice.origin == "environment"])
        self._check_agreement([choice for choice in asked if choice.origin == "argument"])
        return asked[0] if asked else Choice(self.fallback(), "default", "")

    def _variables_given(self) -> list[Choice]:
        return [
            Choice(source.parse(source.name, os.environ[source.name]), "environment", source.name)
            for source in self.variables
            if source.name in os.environ
        ]

    def _arguments_given(self, arguments: Mapping[str, Any]) -> list[Choice]:
        parsed = [(s, s.parse(s.name, arguments[s.name])) for s in self.arguments]
        return [
            Choice(value, "default", "")
            if arguments[source.name] is source.default
            else Choice(value, "argument", source.name)
            for source, value in parsed
        ]

    def _check_agreement(self, asked: list[Choice]) -> None:
        for weaker in asked[1:]:
            if not self.agree(asked[0].value, weaker.value):
                raise ValueError(
                    f"{asked[0].source} asks for {asked[0].value!r}, {weaker.source} for "
                    f"{weaker.value!r}: they contradict each other, give only one."
                )

    def status(self, value: Any) -> Status:
        """What becomes of a value that is asked for now; None asks for nothing."""
        if value is None or self.is_in_force(value):
            return "unchanged"
        if self.conflicts(value):
            return "overridden by the environment"
        return "too late" if self._is_too_late() else "applied"

    def _is_too_late(self) -> bool:
        if self.needs_fresh_plugins and plugins_are_registered():
            return True
        return self.needs_fresh_backend and backend_is_up()

    def flags_of(self, value: Any) -> Mapping[str, str]:
        """The flags that a value is made of, if the setting is made of flags."""
        return self.flags(value) if self.flags and value is not None else {}

    def is_in_force(self, value: Any) -> bool:
        """Whether there is nothing to be done for a value."""
        if self.holds is not None:
            return self.holds(value)
        return self.current is not None and self.current() == value

    def effective(self, applied: Any) -> Any:
        """The active value once ``applied`` has been applied."""
        return applied if self.current is None else self.current()

    def user_variables(self) -> dict[str, str]:
        """The native variables that the user has set, as far as they concern the setting."""
        texts = {name: user_value(name) for name in self.native}
        spelt = {name: self.spelling(name, text) for name, text in texts.items() if text}
        return {name: text for name, text in spelt.items() if text}

    def is_from_environment(self, value: Any) -> bool:
        """Whether an active value is what the user's variables ask for."""
        try:
            return bool(self.user_variables()) and not self.conflicts(value)
        except (KeyError, TypeError, ValueError):  # a value that only the variables can spell
            return True

    def conflicts(self, value: Any) -> bool:
        """Whether the user has set a native variable to something else than ``value`` means."""
        wanted = dict(zip(self.native, self.native_values(value), strict=True))
        return any(text != wanted[name] for name, text in self.user_variables().items())
