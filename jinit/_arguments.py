"""Arguments as other systems give them, translated into those that a function takes."""

import difflib
import inspect
import numbers
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinit._known_names import (
    ARGUMENTS,
    EVERY_INITIALIZER,
    NO_ARGUMENTS,
    POSITIONS,
    VALUES,
    WITHOUT,
    As,
    Instead,
)

__all__ = ["Reader"]


class Reader:
    """Reads the arguments of one function.

    Args:
        name: What users call it.
        function: The function, or the ``__init__`` of a class, which makes an initializer.
        skipped: How many of its parameters come before those that users give.
    """

    def __init__(self, name: str, function: Callable[..., Any], skipped: int) -> None:
        parameters = list(inspect.signature(function).parameters.values())[skipped:]
        # The dtype, which all initializers take, stands last where they are listed.
        self.name, self.own = name, sorted((p.name for p in parameters), key="dtype".__eq__)
        self._required = [p.name for p in parameters if p.default is p.empty]
        self._makes_initializer = bool(skipped) or name in ("ones", "zeros")
        common = EVERY_INITIALIZER if self._makes_initializer else {}
        self._known = {**common, **ARGUMENTS.get(name, {})}

    def read(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Returns arguments by position and by name that the function takes.

        Raises:
            TypeError: If an argument is unknown or ambiguous, or means something else here, with
                what to write.
        """
        if self._makes_initializer:
            self.check_makes(args, kwargs)
        if (args or kwargs) and self.name in NO_ARGUMENTS:
            raise TypeError(f"{self.name} takes no arguments: {NO_ARGUMENTS[self.name]}")
        named = self._named(kwargs)
        if args and self.name in POSITIONS:
            placed = self.placed(self.name, args, POSITIONS[self.name])
            args, named = (), self.joined(placed, named)
        self._check_given(args, named)
        return args, {key: self._value(key, value) for key, value in named.items()}

    def check_makes(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raises where it is called as the initializer that it makes would be."""
        if _is_drawing(self.name, args, kwargs) or (args and not self.own[:-1]):
            call = f"{self.name}({', '.join(f'{name}=...' for name in self._required)})"
            raise TypeError(
                f"{self.name} makes an initializer and was called as one: write {call}, as in "
                f"kernel_init=initializers.{call}"
            )
        if args and getattr(args[0], "shape", ()) and (self.name != "constant" or args[1:]):
            raise TypeError(
                f"{self.name} fills no array in place: write "
                f"array = {self.name}(...)(key, array.shape, array.dtype)"
            )

    def _check_given(self, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        given = {*self.own[: len(args)], *named}
        for name in self._required:
            if name not in given and (self.name, name) in WITHOUT:
                raise TypeError(f"{self.name} needs {name}: {WITHOUT[self.name, name]}")

    def _named(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Translates arguments by name."""
        named: dict[str, Any] = {}
        for name, value in kwargs.items():
            entry = self._entry(name)
            clash = set(entry.unlike) & set(kwargs)
            if clash and not (set(entry.given) - set(entry.unlike)) & set(kwargs):
                raise TypeError(
                    f"{self.name} got {name}= and {min(clash)}=, which are of different systems: "
                    "name them all as one of them does"
                )
            implied = {k: v for k, v in entry.given.items() if k not in kwargs and k not in named}
            translated = {entry.name: value} if entry.name else {}
            named = self.joined(named, translated) | implied
        return named

    def _entry(self, name: str) -> As:
        if name in self.own:
            return As(name)
        entry = self._known.get(name)
        if isinstance(entry, Instead):
            raise TypeError(f"{self.name} takes no {name}=: {entry.text}")
        if entry is None:
            close = difflib.get_close_matches(name, [*self.own, *self._known], n=1)
            hint = f", did you mean {close[0]}=?" if close else ""
            raise TypeError(
                f"{self.name} takes no {name}={hint or ','} its arguments: {', '.join(self.own)}"
            )
        return entry if isinstance(entry, As) else As(entry)

    def joined(self, first: Mapping[str, Any], then: Mapping[str, Any]) -> dict[str, Any]:
        """Returns arguments of two kinds, none of which may be given twice."""
        twice = set(first) & set(then)
        if twice:
            raise TypeError(f"{self.name} got {min(twice)} twice")
        return {**first, **then}

    def placed(
        self,
        called: str,
        args: tuple[Any, ...],
        positions: Mapping[str, tuple[str, ...]],
        given: Mapping[str, Any] = {},
    ) -> dict[str, Any]:
        """Translates arguments by position, where all systems mean the same.

        Args:
            called: The name that the user called.
            args: The arguments.
            positions: What they are in the systems that have the name.
            given: What is to be written as well; an ellipsis stands for what the user must choose.

        Raises:
            TypeError: If the systems mean different things, with what to write for each.
        """
        readings = {
            system: names[: len(args)]
            for system, names in positions.items()
            if len(names) >= len(args)
        }
        meant = {system: self._meaning(names, args) for system, names in readings.items()}
        meanings = list(meant.values())
        if None not in meanings and len({tuple(meaning or ()) for meaning in meanings}) == 1:
            return next(iter(meanings)) or {}
        writings = [
            f"{self._call({**meaning, **{k: v for k, v in given.items() if k not in meaning}})} "
            f"as in {system}"
            for system, meaning in meant.items()
            if meaning and all(map(_fits, readings[system], args))
        ]
        shown = f"{called}({', '.join(map(reprlib.repr, args))})"
        seed = "; a seed, as in Keras, is the key it draws with" if None in meant.values() else ""
        if not writings:
            raise TypeError(f"{shown}: give the arguments by name, {', '.join(self.own)}{seed}")
        raise TypeError(
            f"{shown} gives by position what is given by name, because systems differ: "
            f"write {' or '.join(writings)}{seed}"
        )

    def _meaning(self, names: Sequence[str], args: tuple[Any, ...]) -> dict[str, Any] | None:
        """Returns the arguments as they are named here; None where one means nothing."""
        if any(isinstance(self._known.get(name), Instead) for name in names):
            return None
        return self._named(dict(zip(names, args, strict=True)))

    def _call(self, named: Mapping[str, Any]) -> str:
        texts = {name: "..." if v is ... else reprlib.repr(v) for name, v in named.items()}
        values = ", ".join(f"{name}={text}" for name, text in texts.items())
        return f"{self.name}({values})"

    def _value(self, name: str, value: Any) -> Any:
        if name == "dtype" and self._makes_initializer and value is not None:
            import jax.numpy as jnp

            return jnp.dtype(value).name
        others = VALUES.get((self.name, name), {})
        return others.get(value, value) if isinstance(value, str) else value


def _is_drawing(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Returns whether arguments are a key or a shape, and what an initializer is called with."""
    if {"key", "shape"} <= set(kwargs):
        return True
    if not args:
        return False
    first, second = [*args, None][:2]
    if _is_key(first) or (first is None and _is_shape(second)):
        return True
    typed = "dtype" in kwargs or _is_dtype(second)
    # The value of a constant may look like a shape.
    return _is_shape(first) and typed and name != "constant"


def _is_key(value: Any) -> bool:
    import jax

    if not isinstance(value, jax.Array):
        return False
    typed = jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key)
    return typed or (value.dtype == "uint32" and value.ndim == 1)


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(isinstance(n, numbers.Integral) for n in value)


def _is_dtype(value: Any) -> bool:
    import jax.numpy as jnp

    try:
        jnp.dtype(value)
    except (TypeError, ValueError):
        return False
    return value is not None


_AXES = ("in_axis", "out_axis", "batch_axis", "column_axis")
_NO_NUMBERS = ("dtype", "mode", "nonlinearity", "distribution")


def _fits(name: str, value: Any) -> bool:
    """Returns whether an argument of another system could have a value."""
    number = isinstance(value, numbers.Real) or getattr(value, "shape", None) == ()
    if name in _AXES:
        return isinstance(value, numbers.Integral) or _is_shape(value)
    return not number if name in _NO_NUMBERS else number
