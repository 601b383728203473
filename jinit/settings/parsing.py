"""Parsers that refuse a bad value with its name, the value itself and the legal ones."""

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = ["Parser", "choice", "integer", "optional"]

Parser = Callable[[str, Any], Any]


def integer(low: int, high: int, *, note: str = "", text: bool = False) -> Parser:
    """Makes the parser of an integer in [low, high].

    Args:
        low: The least legal value.
        high: The greatest legal value.
        note: What a special value means, for the error.
        text: Whether digits are parsed (a variable); otherwise anything with ``__index__`` is
            taken, a bool excepted (an argument).
    """
    legal = f"an integer in [{low}, {high}]{note}"

    def parse(name: str, value: Any) -> int:
        # numpy < 2.3 takes its booleans for indices, with a warning
        if type(value).__name__.startswith("bool"):
            raise TypeError(_refusal(name, value, legal))
        try:
            number = int(value) if text else operator.index(value)
        except (TypeError, ValueError):
            error = ValueError if text else TypeError
            raise error(_refusal(name, value, legal)) from None
        if not low <= number <= high:
            raise ValueError(_refusal(name, value, legal))
        return number

    return parse


def choice(legal_values: Iterable[Any]) -> Parser:
    """Makes the parser of one of a few values; a mapping says what each means."""
    mapped = isinstance(legal_values, Mapping)
    meanings = legal_values if mapped else {value: value for value in legal_values}
    legal = "one of " + ", ".join(map(repr, meanings))

    def parse(name: str, value: Any) -> Any:
        try:
            return meanings[value]
        except (KeyError, TypeError):
            raise ValueError(_refusal(name, value, legal)) from None

    return parse


def optional(parse: Parser) -> Parser:
    """Lets None pass, by which an argument asks for nothing."""
    return lambda name, value: None if value is None else parse(name, value)


def _refusal(name: str, value: object, legal: str) -> str:
    remedy = "correct or unset the variable" if name.isupper() else "pass one, or leave it out"
    return f"{name} must be {legal}, not {value!r}: {remedy}."
