"""A model of any framework as a function of a tree of arrays, and the way back.

What the variables of each are, what is applied to them, and what is given back::

    given                                variables                  restored
    an nnx.Module                        its nnx.State              a module
    an Equinox module                    it, None for what is       a module
                                         no array
    a bound linen module                 its collections            a bound module
    variables and a linen module         they                       variables
    params and Haiku's Transformed       they                       params
    (params, state) and a                {"params": params,         (params, state)
    TransformedWithState                 "state": state}
    a tree and a function                it                         a tree
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jinit._kinds import kind_of
from jinit.modules.kinds import (
    Form,
    calls_itself,
    form_of,
    is_bound,
    is_framework_type,
)
from jinit.tracing import Static, partition
from jinit.typing import ApplyFn, PyTree

__all__ = [
    "OWN_KEY",
    "Model",
    "Module",
    "call_itself",
    "read_model",
]

OWN_KEY = "jinit"
"""The name of the random key that a framework's module draws with, among ``rngs``."""


@dataclass(frozen=True)
class Model:
    """A model, taken apart.

    Attributes:
        variables: A tree of arrays.
        apply_fn: Applies it, ``apply_fn(variables, *inputs)``. Those of equal models are equal.
        restore: Makes of such a tree what was given: an object of that kind, and a new one.
        call: What applies a restored one, ``call(model, *inputs)``, as its framework does.
        rngs: The names of the random keys that ``apply_fn`` takes beside those that the user names.
        open: Whether the tree takes further collections, as linen's variables do.
    """

    variables: PyTree
    apply_fn: ApplyFn
    restore: Callable[[PyTree], Any]
    call: ApplyFn
    rngs: tuple[str, ...] = ()
    open: bool = False

    @property
    def is_object(self) -> bool:
        """Whether an object was given, of which the parameters are only a part."""
        return isinstance(self.apply_fn, Module) and not self.open

    @property
    def opened(self) -> ApplyFn:
        """Applies the model to its variables as the user calls it, whatever that returns."""
        if isinstance(self.apply_fn, Module) and self.restore is not _same:
            return Opened(self.call, self.restore)
        return self.call


@dataclass(frozen=True)
class Opened:
    """Applies a model that is made of its variables as the user calls it; see ``Model``."""

    call: ApplyFn
    restore: Callable[[PyTree], Any]

    def __call__(self, variables: PyTree, *inputs: Any, **options: Any) -> Any:
        """Makes the model, and calls it."""
        model = self.restore(variables)
        output = self.call(model, *inputs, **options)
        if is_bound(model):
            _check_kept(model, variables)
        return output


def _check_kept(bound: Any, variables: PyTree) -> None:
    """Raises ValueError where a call wrote to collections of a bound module that is let go."""

    def leaves(tree: Any, name: str) -> list[int]:
        return [id(leaf) for leaf in jax.tree.leaves(tree.get(name))]

    after = bound.variables
    lost = [name for name in after if leaves(after, name) != leaves(variables, name)]
    if lost:
        listed = ", ".join(lost)
        raise ValueError(
            f"the call of the bound {type(bound).__name__} writes to {listed}, which would be "
            "lost: calibrate variables and module, as in jinit.calibrate(variables, module, x, "
            f"loss, ...), and take from result.apply_fn(variables, x, mutable={lost!r}) what it "
            "wrote"
        )


def read_model(given: Any, apply_fn: Any = None) -> Model:
    """Takes a model apart.

    Args:
        given: A module, or a tree of variables. A container may hold several NNX or Equinox
            modules.
        apply_fn: What applies it: a function of the model and its inputs, None where it calls
            itself, a linen module, or what ``haiku.transform`` returned.

    Raises:
        TypeError: Something is missing, or is not of the kind of its place.
    """
    form = form_of(given) or form_of(apply_fn)
    call: Any = call_itself if apply_fn is None and calls_itself(given) else apply_fn
    of = type(given) if call is call_itself else None
    return _READERS[form](given, call, of)


def call_itself(model: Any, *inputs: Any, **options: Any) -> Any:
    """Calls a model."""
    return model(*inputs, **options)


def _same(variables: PyTree) -> PyTree:
    return variables


@dataclass(frozen=True)
class Module:
    """Applies the module of a framework to variables that stand for its own.

    Attributes:
        call: What the user calls a module by.
        of: The class of a module that calls itself.
        rest: What the module is without its arrays.
    """

    call: ApplyFn
    of: type | None
    rest: Any

    @property
    def __name__(self) -> str:
        return self.of.__name__ if self.of else getattr(self.call, "__name__", repr(self.call))

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.of.__call__ if self.of else self.call)

    def __call__(
        self, variables: PyTree, *inputs: Any, rngs: Mapping[str, Any] = {}, **options: Any
    ) -> Any:
        """Applies the module; what it does to its state is dropped."""
        named = {name: key for name, key in rngs.items() if name != OWN_KEY}
        options |= {"rngs": named} if named else {}
        return self.apply(variables, rngs.get(OWN_KEY), inputs, options)

    def apply(
        self, variables: PyTree, key: Any, inputs: Sequence[Any], options: dict[str, Any]
    ) -> Any:
        """Calls a module that has the variables, and draws with the key."""
        raise NotImplementedError


@dataclass(frozen=True)
class Merged:
    """Makes an NNX module of its state."""

    graph: Any

    def __call__(self, state: PyTree) -> Any:
        """Makes it, and shares no variable with the state."""
        from flax import nnx

        return nnx.merge(self.graph, jax.tree.map(_itself, state))


class NnxModule(Module):
    """Applies an NNX module; the rest makes it of a state."""

    def apply(self, variables, key, inputs, options):
        model = self.rest(variables if key is None else _reseeded(variables, key))
        return self.call(model, *inputs, **options)


def _itself(leaf: Any) -> Any:
    return leaf


def _read_nnx(given: Any, call: Any, of: type | None) -> Model:
    from flax import nnx

    graph, state = nnx.split(given)
    applied = NnxModule(call, of, Merged(graph))
    state = jax.tree.map(_itself, state)  # its variables are the module's, and would be written to
    rngs = (OWN_KEY,) if any(map(_is_stream_key, _variables(state))) else ()
    return Model(state, applied, applied.rest, call, rngs)


def _variables(state: Any) -> list[Any]:
    from flax import nnx

    return jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, nnx.Variable))


def _is_stream_key(variable: Any) -> bool:
    return is_framework_type(variable, "flax.nnx", "RngKey")


def _reseeded(state: Any, key: Any) -> Any:
    """Returns a state whose random streams are others, and still differ among themselves."""
    bits = jax.random.bits(key, (), jnp.uint32)

    def folded(keys: jax.Array) -> jax.Array:
        one = () if jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) else keys.shape[-1:]
        flat = keys.reshape(-1, *one)  # several where layers are stacked
        return jax.vmap(lambda key: jax.random.fold_in(key, bits))(flat).reshape(keys.shape)

    def other(node: Any) -> Any:
        return jax.tree.map(folded, node) if _is_stream_key(node) else node

    return jax.tree.map(other, state, is_leaf=_is_stream_key)


@dataclass(frozen=True)
class Filled:
    """Makes an Equinox module of a tree that has None in the place of what is no array."""

    static: Static

    def __call__(self, tree: PyTree) -> Any:
        """Makes it."""
        return self.static.fill(jax.tree.leaves(tree))


class EquinoxModule(Module):
    """Applies an Equinox module; the rest makes it of a tree of its arrays."""

    def apply(self, variables, key, inputs, options):
        try:
            return self.call(self.rest(variables), *inputs, **options)
        except Exception as error:
            if self.of is not None:
                error.add_note(
                    f"{self.of.__name__} was called with all of its inputs; if it takes one "
                    "example, as Equinox's layers do, give it one, or pass for a batch "
                    "lambda m, x: jax.vmap(m)(x) after the model"
                )
            if isinstance(error, RuntimeError) and "requires a key" in str(error):
                error.add_note(
                    "Equinox's modules draw with the key that they are given: pass rngs='dropout', "
                    "and a function of (m, x, *, rngs) that hands rngs['dropout'] on"
                )
            raise


def _read_equinox(given: Any, call: Any, of: type | None) -> Model:
    static, arrays = partition(given)
    applied = EquinoxModule(call, of, Filled(static))
    rest = iter(arrays)
    leaves = [next(rest) if leaf is None else None for leaf in static.leaves]
    return Model(jax.tree.unflatten(static.tree, leaves), applied, applied.rest, call)


class LinenModule(Module):
    """Applies a linen module; the rest is the module without variables."""

    def apply(self, variables, key, inputs, options):
        import flax.linen as nn

        mutable = nn.DenyList(("params",))
        return self.rest.apply(variables, *inputs, **options, mutable=mutable, method=self.call)[0]

    @property
    def __signature__(self) -> inspect.Signature:
        """That of the module's ``apply``, which takes random keys for any module."""
        own = [*super().__signature__.parameters.values()]
        if any(p.name == "rngs" or p.kind == p.VAR_KEYWORD for p in own):
            return inspect.Signature(own)
        rngs = inspect.Parameter("rngs", inspect.Parameter.KEYWORD_ONLY, default=None)
        return inspect.Signature([*own, rngs])


def _read_bound(given: Any, call: Any, of: type | None) -> Model:
    module, variables = given.unbind()
    scope = given.scope
    rngs = {name: rng.as_jax_rng() for name, rng in scope.rngs.items()}

    def restore(tree: PyTree) -> Any:
        return module.bind(tree, rngs=rngs, mutable=scope.mutable)

    applied = LinenModule(call, of, module)
    return Model(variables, applied, restore, call, rngs=tuple(rngs), open=True)


class HaikuModule(Module):
    """Applies a function that Haiku transformed, which is the rest."""

    def apply(self, variables, key, inputs, options):
        keyed = (key,) if _takes_key(self.rest) else ()
        if form_of(self.rest) == "Transformed":
            return self.rest.apply(variables, *keyed, *inputs, **options)
        params, state = variables["params"], variables["state"]
        return self.rest.apply(params, state, *keyed, *inputs, **options)[0]

    @property
    def __signature__(self) -> inspect.Signature:
        """That of the function which was transformed, after the variables."""
        variables, *rest = inspect.signature(self.rest.apply).parameters.values()
        with_state = form_of(self.rest) == "TransformedWithState"
        return inspect.Signature([variables, *rest[with_state + _takes_key(self.rest) :]])


def _read_linen(variables: Any, module: Any, of: type | None) -> Model:
    applied = LinenModule(call_itself, type(module), module.clone(parent=None))
    return Model(variables, applied, _same, applied.rest.apply, open=True)


def _read_haiku(given: Any, transformed: Any, of: type | None) -> Model:
    applied = HaikuModule(transformed.apply, None, transformed)
    rngs = (OWN_KEY,) if _takes_key(transformed) else ()
    pair = isinstance(given, tuple) and len(given) == 2
    if form_of(transformed) == "Transformed":
        if pair:
            raise TypeError(
                "params is a pair, but apply_fn is Haiku's Transformed, which has no state: pass "
                "the params alone"
            )
        return Model(given, applied, _same, transformed.apply, rngs)
    if not pair:
        raise TypeError(
            f"params is {kind_of(given)}, but apply_fn is Haiku's TransformedWithState: pass "
            "(params, state), as its init returned them"
        )
    variables = dict(zip(("params", "state"), given, strict=True))
    return Model(variables, applied, _pair, transformed.apply, rngs)


def _takes_key(transformed: Any) -> bool:
    """Returns whether a key is asked for; ``haiku.without_apply_rng`` takes it out."""
    return "rng" in inspect.signature(transformed.apply).parameters


def _pair(variables: PyTree) -> tuple[PyTree, PyTree]:
    return variables["params"], variables["state"]


def _read_tree(given: Any, call: Any, of: type | None) -> Model:
    return Model(given, call, _same, call, open=True)


_READERS: dict[Form | None, Callable[[Any, Any, type | None], Model]] = {
    "nnx": _read_nnx,
    "equinox": _read_equinox,
    "bound": _read_bound,
    "linen": _read_linen,
    "Transformed": _read_haiku,
    "TransformedWithState": _read_haiku,
    None: _read_tree,
}
