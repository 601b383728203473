"""How names and arguments of other systems are read, by the table in ``jinit._known_names``."""

import difflib
import dis
import functools
import importlib
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from jinit._arguments import Reader
from jinit._known_names import CONTEXTS, NAMES, Same

__all__ = ["known_arguments", "known_names"]

T = TypeVar("T")


def known_names(module: str, public: Sequence[str]) -> Callable[[str], Any]:
    """Makes the ``__getattr__`` of a module, which knows the names of other systems.

    Args:
        module: The module's name.
        public: Its own names, of which an error about a typing error names the nearest.

    Returns:
        A function of a name that returns what it means, or raises AttributeError; ImportError
        where a known name of something else is imported, for an import statement would replace
        the text of an AttributeError.
    """

    def __getattr__(name: str) -> Any:
        entry = NAMES[module].get(name)
        if isinstance(entry, Same):
            return _same(module, name)
        text = f"module {module!r} has no attribute {name!r}"
        if entry is None:
            raise AttributeError(text + _nearest(name, public))
        raise (ImportError if _is_imported() else AttributeError)(f"{text}: {entry.text}")

    return __getattr__


def _is_imported() -> bool:
    """Returns whether an import statement asks a module for the name."""
    asking = sys._getframe(2)
    # a module may have a __getattr__ of its own in between
    callers = asking, asking.f_back
    return any(caller and caller.f_code.co_name == "_handle_fromlist" for caller in callers)


def _nearest(name: str, names: Sequence[str]) -> str:
    close = [] if name.startswith("__") else difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


@functools.cache
def _same(module: str, name: str) -> Any:
    """Returns a function under another name, or what calls it as that name does."""
    entry: Any = NAMES[module][name]
    native = getattr(importlib.import_module(module), entry.native)
    if not any(entry[1:]):
        return native

    reader = _reader(native)

    @functools.wraps(native, updated=())
    def factory(*args: Any, **kwargs: Any) -> Any:
        if args and entry.positions:
            reader.check_makes(args, kwargs)
            implied = {**entry.given, **{names[-1]: ... for names in entry.needs}}
            placed = reader.placed(name, args, entry.positions, implied)
            args, kwargs = (), reader.joined(placed, kwargs)
        _check_as_named(name, entry, args, kwargs)
        return native(*args, **{**entry.given, **kwargs})

    factory.__name__ = factory.__qualname__ = name
    return factory


def _check_as_named(name: str, entry: Same, args: tuple[Any, ...], kwargs: Mapping) -> None:
    for names in () if args else entry.needs:
        if not set(names) & set(kwargs):
            raise TypeError(f"{name} needs {names[0]}=, whose default differs among systems")
    for (argument, value), text in entry.differs.items():
        if kwargs.get(argument) == value or value in args:
            raise ValueError(f"{name}({argument}={value!r}) differs among systems: {text}")


def known_arguments(made: T) -> T:
    """Lets a function or class take arguments as other systems name them, and explain the rest.

    Args:
        made: A function, or a class whose ``__init__`` takes the arguments.

    Returns:
        The function or class. Its signature shows its own arguments alone.
    """
    if not isinstance(made, type):
        return _reading(made, 0, _reader(made))
    made.__init__ = _reading(made.__init__, 1, _reader(made))  # pyright: ignore
    return made


def _reader(made: Any) -> Reader:
    if isinstance(made, type):
        return Reader(made.__name__, made.__init__, 1)
    return Reader(made.__name__, made, 0)


def _reading(function: Any, skipped: int, reader: Reader) -> Any:

    @functools.wraps(function)
    def read(*args: Any, **kwargs: Any) -> Any:
        if reader.name in CONTEXTS and _is_entered(sys._getframe(1)):
            raise TypeError(f"{reader.name} is no context: {CONTEXTS[reader.name]}")
        positional, named = reader.read(args[skipped:], kwargs)
        return function(*args[:skipped], *positional, **named)

    return read


def _is_entered(frame: types.FrameType) -> bool:
    """Returns whether a ``with`` statement enters what the current call of a frame returns.

    An array cannot say that itself. Where an interpreter compiles ``with`` in another way, its own
    error is left.
    """
    code = frame.f_code.co_code
    following = (code[i] for i in range(frame.f_lasti + 2, len(code), 2))
    return next(filter(None, following), None) == dis.opmap.get("BEFORE_WITH", -1)
