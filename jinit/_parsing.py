"""Parsers that refuse a bad value with its name, the value itself and the legal ones."""

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = ["FLAG", "SWITCH", "Parser", "choice", "fraction", "integer", "optional", "refusal"]

Parser = Callable[[str, Any], Any]

_SHOWN = 200


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
            raise TypeError(refusal(name, value, legal))
        try:
            number = int(value) if text else operator.index(value)
        except (TypeError, ValueError):
            error = ValueError if text else TypeError
            raise error(refusal(name, value, legal)) from None
        if not low <= number <= high:
            raise ValueError(refusal(name, value, legal))
        return number

    return parse


def fraction(name: str, value: Any) -> float:
    """Parses a number in (0, 1], from a text too."""
    legal = "a number in (0, 1]"
    if type(value).__name__.startswith("bool"):
        raise TypeError(refusal(name, value, legal))
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(refusal(name, value, legal)) from None
    if not 0 < number <= 1:
        raise ValueError(refusal(name, value, legal))
    return number


def choice(legal_values: Iterable[Any]) -> Parser:
    """Makes the parser of one of a few values; a mapping says what each means."""
    mapped = isinstance(legal_values, Mapping)
    meanings = legal_values if mapped else {value: value for value in legal_values}
    legal = "one of " + ", ".join(map(repr, meanings))

    def parse(name: str, value: Any) -> Any:
        try:
            return meanings[value]
        except (KeyError, TypeError):
            raise ValueError(refusal(name, value, legal)) from None

    return parse


def optional(parse: Parser) -> Parser:
    """Lets None pass, by which an argument asks for nothing."""
    return lambda name, value: None if value is None else parse(name, value)


def refusal(name: str, value: object, legal: str) -> str:
    """Says which value was refused, what is legal instead, and what to do."""
    is_variable = name.partition("[")[0].isupper()
    remedy = "correct or unset the variable" if is_variable else "pass one, or leave it out"
    shown = repr(value)
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}... ({len(shown)} characters)"
    return f"{name} must be {legal}, not {shown}: {remedy}."


SWITCH = choice({True: True, False: False})
"""The parser of an argument that is True or False."""

FLAG = choice({"0": False, "1": True})
"""The parser of a variable that is 0 or 1."""
