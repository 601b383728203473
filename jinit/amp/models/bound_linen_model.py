"""A linen module under a policy with its variables bound."""

import dataclasses
import functools
import inspect
from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

import jax

from jinit.modules.kinds import is_framework_type
from jinit.typing import PyTree

__all__ = ["BoundLinenModel"]


class _Applied(Protocol):
    """What is bound: a module, and its ``apply`` at a level."""

    @property
    def module(self) -> Any: ...

    def apply(self, variables: PyTree, *inputs: PyTree, **kwargs: Any) -> PyTree: ...


L = TypeVar("L", bound=_Applied)


class BoundLinenModel(Generic[L]):
    """A linen module under a policy with its variables: called like the module.

    Its methods run at the level too, and so do its submodules that ``setup`` made. Every call
    draws random numbers anew, the first with the keys that were given.

    Args:
        model: The model.
        variables: A mapping of collections.
        rngs: A key, keys by the name of their stream, or None.
        mutable: What calls may update: the variables are then replaced.

    Attributes:
        variables: The variables now.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import linen as nn
        >>> from jinit import amp
        >>> model = amp.initialize(nn.BatchNorm(use_running_average=False), opt_level="O2")
        >>> x = jnp.array([[1.0], [3.0]])
        >>> bound = model.bind(model.init(jax.random.key(0), x), mutable=["batch_stats"])
        >>> bound(x).tolist(), round(float(bound.variables["batch_stats"]["mean"][0]), 3)
        ([[-1.0], [1.0]], 0.02)
    """

    def __init__(
        self, model: L, variables: PyTree, *, rngs: Any = None, mutable: Any = False
    ) -> None:
        self.variables = variables
        self._model, self._rngs, self._mutable = model, rngs, mutable
        self._calls = 0

    def __call__(self, *inputs: PyTree, **kwargs: Any) -> PyTree:
        """Applies the module at the level."""
        return self._apply(None, *inputs, **kwargs)

    def unbind(self) -> tuple[L, PyTree]:
        """Returns the model and its variables apart."""
        return self._model, self.variables

    def __getattr__(self, name: str) -> Any:
        """Reads what the bound module has: a method or a submodule at the level, or a value."""
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return self._read(_Place((name,)))

    def _read(self, place: "_Place") -> Any:
        value = place.find(self._model.module.bind(self.variables))
        if inspect.ismethod(value) and _is_linen(value.__self__):
            return functools.partial(self._apply, place)
        return jax.tree_util.tree_map_with_path(functools.partial(self._at_level, place), value)

    def _at_level(self, place: "_Place", path: Sequence[Any], value: Any) -> Any:
        """Returns a submodule at the level, and any other value as it is."""
        if not _is_linen(value):
            return value
        return _BoundPart(self, place.below(*((_index(entry),) for entry in path)))

    def _apply(self, method: "_Place | None", *inputs: PyTree, **kwargs: Any) -> PyTree:
        outputs = self._model.apply(
            self.variables,
            *inputs,
            method=method,
            rngs=self._keys(),
            mutable=self._mutable,
            **kwargs,
        )
        self._calls += 1
        if self._mutable is False:
            return outputs
        outputs, updated = outputs
        self.variables = {**self.variables, **updated}
        return outputs

    def _keys(self) -> Any:
        """Returns the keys of a call: those given for the first, others for the next."""
        if not self._calls:
            return self._rngs
        return jax.tree.map(lambda key: jax.random.fold_in(key, self._calls), self._rngs)

    def __repr__(self) -> str:
        return f"<{repr(self._model)[1:-1]}, bound>"


class _BoundPart:
    """A submodule of a bound model.

    Args:
        whole: The bound model, which keeps the variables.
        place: Where the submodule stands in it.
    """

    def __init__(self, whole: BoundLinenModel, place: "_Place"):
        self._whole, self._place = whole, place

    def __call__(self, *inputs: PyTree, **kwargs: Any) -> PyTree:
        return self._whole._apply(self._place, *inputs, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return self._whole._read(self._place.below(name))

    def __repr__(self) -> str:
        return f"<{self._place} of {repr(self._whole)[1:-1]}>"


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where something stands in a linen module; called with the module, it calls what is there.

    Attributes:
        steps: Attributes by name, and items, each key or index alone in a tuple.
    """

    steps: tuple[str | tuple[Any], ...]

    def below(self, *steps: str | tuple[Any]) -> "_Place":
        """Returns the place some steps further."""
        return _Place((*self.steps, *steps))

    def find(self, module: Any) -> Any:
        """Returns what stands there."""
        for step in self.steps:
            module = getattr(module, step) if isinstance(step, str) else module[step[0]]
        return module

    def __call__(self, module: Any, *inputs: PyTree, **kwargs: Any) -> PyTree:
        return self.find(module)(*inputs, **kwargs)

    def __str__(self) -> str:
        return "/".join(step if isinstance(step, str) else str(step[0]) for step in self.steps)


def _index(entry: Any) -> Any:
    """Returns the key or index of an entry of JAX's paths."""
    return entry.idx if isinstance(entry, jax.tree_util.SequenceKey) else entry.key


def _is_linen(value: Any) -> bool:
    return is_framework_type(value, "flax.linen", "Module")
