"""Reads a Linen module: its methods run abstractly, and its calls of ``param`` are seen."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

from jinit.defaults.linen import Context
from jinit.defaults.lost_at_apply import nothing_is_lost
from jinit.defaults.observer import observing
from jinit.defaults.provenance.reading import RETRACE, Path, Reading
from jinit.defaults.provenance.untold import untold
from jinit.defaults.tables.fans import flat_shape

__all__ = ["read_linen"]


def read_linen(
    model: nn.Module, inputs: tuple, kwargs: Mapping[str, Any]
) -> tuple[dict[Path, Any], Reading]:
    """Returns the parameters of a module, abstractly, and what is known about them."""
    reader = _Reader()
    note = untold(model)
    reader.reading.notes += [note] if note else []
    leaves, structure = jax.tree.flatten((inputs, dict(kwargs)))
    traced = {i: leaf for i, leaf in enumerate(leaves) if hasattr(leaf, "shape")}

    def init(traced: dict[int, Any]) -> Any:
        given = structure.unflatten(traced.get(i, leaf) for i, leaf in enumerate(leaves))
        return model.init(jax.random.key(0), *given[0], **given[1])

    with (
        nothing_is_lost(),
        observing(reader.given),
        nn.intercept_methods(reader.intercept),
        RETRACE(object()),
    ):
        variables = jax.eval_shape(init, traced)
    params = nn.meta.unbox(variables).get("params", {})
    flat = jax.tree_util.tree_leaves_with_path(params)
    return {tuple(key.key for key in path): leaf for path, leaf in flat}, reader.reading


class _Reader:
    def __init__(self) -> None:
        self.reading = Reading()

    def given(self, module: nn.Module, values: Mapping[str, Any], _: Mapping[str, Any]) -> None:
        self.reading.give(values)
        # NNX layers inside a bridge come by here too.
        if isinstance(module, nn.Module) and module.scope is not None:
            self.reading.norm(module.path, type(module), values)

    def intercept(
        self, next_fun: Callable, args: tuple, kwargs: Mapping[str, Any], context: Context
    ) -> Any:
        module = context.module
        if module.scope is None or "param" in module.__dict__:
            return next_fun(*args, **kwargs)
        self.reading.norm(module.path, type(module), module.__dict__)
        # On the instance, in front of the class's own method, which interceptors do not see.
        object.__setattr__(module, "param", self._recording(module))
        try:
            return next_fun(*args, **kwargs)
        finally:
            object.__delattr__(module, "param")

    def _recording(self, module: nn.Module) -> Callable:
        draw = module.param

        def param(name: str, init_fn: Any, *args: Any, **kwargs: Any) -> Any:
            pending = self.reading.pending(name, _initializer(module, name, init_fn))
            value = draw(name, init_fn, *args, **kwargs)
            shape = jax.tree.leaves(value)[0].shape
            if isinstance(module, nn.DenseGeneral):
                shape = flat_shape(name, shape, module.features)
            self.reading.drawn[(*module.path, name)] = pending.explain(shape)
            return value

        return param


def _initializer(module: nn.Module, name: str, init_fn: Any) -> Any:
    """Returns what draws: some of Flax's layers put a function around their field."""
    around = (getattr(init_fn, "__module__", None) or "").startswith("flax.linen")
    return module.__dict__.get(f"{name}_init", init_fn) if around else init_fn
