"""Tells what was passed to a Linen layer from what was not, where both are one object.

``nn.initializers.zeros_init()`` returns the very object that is the default of ``bias_init``. While
a table is active, a default that is passed is replaced by another object that draws the same: what
is cloned, copied or handed on by a transformation still shows that it was chosen.
"""

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import MISSING, dataclass
from typing import Any

import flax.linen as nn
from flax.linen.experimental import layers_with_named_axes as named_axes

from jinit.defaults.active import active_table
from jinit.defaults.patches import Make, Target
from jinit.defaults.tables.layer_table import AT_APPLY

__all__ = ["Passed", "initializations", "is_noticed"]


@dataclass(frozen=True, repr=False)
class Passed:
    """An initializer that is a layer's default, and was passed all the same.

    Attributes:
        init: The initializer.
    """

    init: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Draws."""
        return self.init(*args, **kwargs)

    def __repr__(self) -> str:
        return f"passed({getattr(self.init, '__name__', repr(self.init))})"


@functools.lru_cache(maxsize=1024)
def _replaceable(cls: type) -> Mapping[str, tuple[Any, ...]]:
    """Returns the defaults that a table may replace, of a class and of its bases, by field."""
    found: dict[str, tuple[Any, ...]] = {}
    for base in cls.__mro__:
        for name, field in getattr(base, "__dataclass_fields__", {}).items():
            if field.default is not MISSING and (name.endswith("_init") or name in AT_APPLY):
                found[name] = (*found.get(name, ()), field.default)
    return found


LAYERS = tuple(
    layer
    for namespace in (nn, named_axes)
    for layer in vars(namespace).values()
    if isinstance(layer, type) and issubclass(layer, nn.Module) and _replaceable(layer)
)
"""Flax's own layers that have such defaults."""


def is_noticed(layer: nn.Module) -> bool:
    """Returns whether a layer was constructed while a table was active."""
    return _NOTICED in layer.__dict__


def initializations(layers: Iterable[type]) -> dict[Target, Make]:
    """Returns the patches of what constructs Linen layers, and classes that follow them."""
    # Flax's layers are made of one another: one without a row hands on what it was given.
    all_layers = (*LAYERS, *layers)
    classes = dict.fromkeys(each for layer in all_layers for each in _with_subclasses(layer))
    return {
        (nn.Module, "__init_subclass__"): _following,
        **{(cls, "__init__"): _noticing for cls in classes if "__init__" in cls.__dict__},
    }


def _with_subclasses(layer: type) -> Iterator[type]:
    yield layer
    for below in layer.__subclasses__():
        yield from _with_subclasses(below)


def _following(_: type, own: classmethod) -> classmethod:
    """Returns what is called for new classes: their instances are noticed too."""

    @functools.wraps(own.__func__)
    def __init_subclass__(cls: type[nn.Module], **kwargs: Any) -> None:
        own.__func__(cls, **kwargs)
        # It stays with the class, and does nothing while no table is active.
        if "__init__" in cls.__dict__:
            cls.__init__ = _noticing(cls, cls.__init__)

    return classmethod(__init_subclass__)


_NOTICED = "_jinit_noticed"

_handed_on: ContextVar[object] = ContextVar("jinit_handed_on", default=None)
"""The layer that is made again of what another one holds."""


def _noticing(cls: type, own: Callable) -> Callable:
    """Returns a constructor that tells defaults that are passed from those that are not."""
    if getattr(own, "_notices", False):
        return own
    signature = functools.cache(lambda: inspect.signature(own))

    @functools.wraps(own)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if active_table() is None:
            return own(self, *args, **kwargs)
        caller = sys._getframe(1).f_globals.get("__name__", "")
        handed_on = _hands_on(caller) or _handed_on.get() is self
        try:
            given = signature().bind(self, *args, **kwargs)
        except TypeError:
            return own(self, *args, **kwargs)  # it says better what is wrong
        construct = functools.partial(_construct, own, self, args, kwargs, given)
        if handed_on:
            with _handing_on(self):
                return construct({})
        object.__setattr__(self, _NOTICED, True)
        return construct(_told_apart(type(self), given.arguments))

    vars(__init__)["_notices"] = True
    return __init__


def _construct(
    own: Callable,
    layer: Any,
    args: tuple,
    kwargs: Mapping[str, Any],
    given: inspect.BoundArguments,
    told: Mapping[str, Any],
) -> None:
    """Constructs a layer; a default that its own ``__post_init__`` sets counts as passed."""
    defaults = _replaceable(type(layer)) if _has_post_init(type(layer)) else {}
    values = {**given.arguments, **told}
    left = {n: found[0] for n, found in defaults.items() if values.get(n, found[0]) is found[0]}
    marks = {name: _another(value) for name, value in left.items()}
    _call(own, layer, args, kwargs, given.signature, {**told, **marks})
    for name, found in defaults.items():
        value = layer.__dict__.get(name)
        if name in marks and value is marks[name]:
            object.__setattr__(layer, name, left[name])
        elif any(value is default for default in found):
            object.__setattr__(layer, name, _another(value))


def _call(
    own: Callable,
    layer: Any,
    args: tuple,
    kwargs: Mapping[str, Any],
    signature: inspect.Signature,
    changed: Mapping[str, Any],
) -> None:
    """Calls a constructor with some arguments changed, and each as it was given."""
    # Flax's constructors take ``parent`` and ``name`` by name alone, and do not say so.
    _, *names = signature.parameters
    positional = [changed.get(name, value) for name, value in zip(names, args, strict=False)]
    by_name = {name: value for name, value in changed.items() if name not in names[: len(args)]}
    own(layer, *positional, **{**kwargs, **by_name})


@functools.lru_cache(maxsize=1024)
def _has_post_init(cls: type) -> bool:
    """Returns whether a class has a ``__post_init__`` that is not Flax's."""
    users = (c for c in cls.__mro__ if c.__module__.partition(".")[0] != "flax")
    return any("__post_init__" in c.__dict__ for c in users)


_WRAP = "jinit.defaults.layer_defaults"


def _hands_on(caller: str) -> bool:
    # Clones, lifted transformations, and layers that are made of others pass all that they hold.
    return caller.partition(".")[0] in ("flax", "dataclasses") or caller == _WRAP


@contextlib.contextmanager
def _handing_on(layer: object) -> Iterator[None]:
    token = _handed_on.set(layer)
    try:
        yield
    finally:
        _handed_on.reset(token)


def _told_apart(cls: type, given: Mapping[str, Any]) -> dict[str, Any]:
    defaults = _replaceable(cls)
    return {
        name: _another(value)
        for name, value in given.items()
        if any(value is default for default in defaults.get(name, ()))
    }


def _another(value: Any) -> Any:
    """Returns another object that means the same."""
    if isinstance(value, float):
        return type(value).fromhex(value.hex())
    return Passed(value) if callable(value) else value
