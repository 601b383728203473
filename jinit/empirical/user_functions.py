"""The user's functions: what they are called, how they are called, and as keys of a cache."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from jinit._kinds import kind_of
from jinit.modules.kinds import haiku_of_apply, hidden_module, name_of
from jinit.modules.model import OWN_KEY, Module
from jinit.tracing import TracedFunction, trace
from jinit.typing import Key, PyTree

__all__ = [
    "ARGUMENT_ORDER",
    "CachedFunction",
    "call_loss",
    "check_call",
    "check_loss_depends",
    "check_pair",
    "describe_call",
    "draw_inputs",
    "explaining_pairs",
    "hiding",
    "positional",
    "trace_model",
]

ARGUMENT_ORDER = "the order is params, apply_fn, dummy_input, dummy_loss"


class CachedFunction:
    """A function as a key of the compilation cache.

    Methods of equal modules are equal, though Python compares them by identity; what cannot be
    hashed, such as a module with a list field, counts as itself.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        functools.update_wrapper(self, fn, updated=())
        self.fn = fn
        self.parts = tuple(
            _key(part) for part in (getattr(fn, "__self__", None), getattr(fn, "__func__", fn))
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function."""
        return self.fn(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CachedFunction) and self.parts == other.parts

    def __hash__(self) -> int:
        return hash(self.parts)


def _key(part: Any) -> Any:
    try:
        hash(part)
    except TypeError:
        return id(part)
    return part


def describe_call(fn: Any) -> str:
    """Names a function in an error message."""
    while hasattr(fn, "func") or hasattr(fn, "fn"):  # a partial, or a function as a cache key
        fn = fn.func if hasattr(fn, "func") else fn.fn
    return getattr(fn, "__name__", None) or repr(fn)


def positional(fn: Callable[..., Any], also: Collection[str]) -> list[str]:
    """Names the positional parameters that must be given, and those of the names ``also``."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = inspect.Parameter.empty
    return [
        p.name for p in parameters if p.kind in kinds and (p.default is required or p.name in also)
    ]


def draw_inputs(dummy_input: Any, key: jax.Array, batch_size: int) -> tuple[Any, ...]:
    """Returns the inputs of one model evaluation as positional arguments."""
    drawn = _called(dummy_input, key, batch_size) if callable(dummy_input) else dummy_input
    return drawn if isinstance(drawn, tuple) else (drawn,)


def _called(dummy_input: Callable[..., Any], key: jax.Array, batch_size: int) -> Any:
    names = positional(dummy_input, ("batch_size", "batchsz"))
    if names[:1] in (["batch_size"], ["batchsz"]):
        given, args = "batch_size", (batch_size,)
    else:
        given, args = "key", (key,)
        if len(names) >= 2:
            given, args = "key, batch_size", (key, batch_size)
    try:
        return dummy_input(*args)
    except Exception as error:
        error.add_note(
            f"raised by dummy_input, the function {describe_call(dummy_input)}, which was called "
            f"with ({given}); {ARGUMENT_ORDER}"
        )
        raise


def call_loss(dummy_loss: Callable[..., Any], output: Any, key: jax.Array) -> jax.Array:
    """Returns the loss of an output as a float32 scalar.

    Raises:
        ValueError: The loss is not a real scalar.
    """
    takes_key = len(positional(dummy_loss, ("key", "rng"))) >= 2
    loss = dummy_loss(output, key) if takes_key else dummy_loss(output)
    leaves = jax.tree.leaves(loss)
    scalar = len(leaves) == 1 and jnp.shape(leaves[0]) == ()
    if not scalar or not jnp.issubdtype(jnp.result_type(leaves[0]), jnp.floating):
        found = jax.tree.map(lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}", loss)
        raise ValueError(
            f"dummy_loss must return one real scalar, but {describe_call(dummy_loss)} returned "
            f"{found}; reduce it, for example with .mean()"
        )
    return jnp.asarray(leaves[0], jnp.float32)


def check_call(apply_fn: Callable[..., Any], inputs: Sequence[Any], **options: Any) -> None:
    """Raises TypeError for a model that does not take its inputs by position."""
    try:
        signature = inspect.signature(apply_fn)
    except (TypeError, ValueError):  # some builtins have no signature
        return
    try:
        signature.bind(None, *inputs, **options)
    except TypeError as error:
        given = ", ".join(["params", *["input"] * len(inputs), *(f"{n}=..." for n in options)])
        module = "rngs" in options and isinstance(getattr(apply_fn, "fn", apply_fn), Module)
        own = ", or leave rngs out where the module draws by itself" if module else ""
        advice = _in_place_of(apply_fn) or (
            f"pass a function of (params, *inputs), and several inputs as a tuple{own}; "
            f"{ARGUMENT_ORDER}"
        )
        raise TypeError(
            f"apply_fn is called as {describe_call(apply_fn)}({given}), but {error}; {advice}"
        ) from None


def _in_place_of(apply_fn: Any) -> str:
    """Says what to pass for a function that holds its model, or takes more than its inputs."""
    fn = getattr(apply_fn, "fn", apply_fn)
    hidden = hidden_module(fn.call if isinstance(fn, Module) else fn)
    if hidden is not None:
        return f"it is {hiding(hidden)}"
    return _HAIKU_APPLIES.get(haiku_of_apply(apply_fn) or "", "")


def hiding(module: Any) -> str:
    """Says of a function that was made of a module what to pass in its place."""
    return (
        f"made of {name_of(module)}, whose arrays it hides; pass the module itself first, and "
        "after it what calls it, as in jinit.calibrate(model, lambda m, x: jax.vmap(m)(x), x, loss)"
    )


_HAIKU_APPLIES = {
    "Transformed": (
        "Haiku's apply takes a random key after the params: pass what haiku.transform returned in "
        "its place, or lambda p, x: f.apply(p, rng, x)"
    ),
    "TransformedWithState": (
        "Haiku's apply takes the state after the params: pass in its place what "
        "haiku.transform_with_state returned, and before it (params, state)"
    ),
}


def trace_model(
    apply: Callable[..., Any],
    apply_fn: Callable[..., Any],
    params: PyTree,
    inputs: Sequence[Any],
    rngs: Mapping[str, Any],
) -> TracedFunction:
    """Traces a model, and says what is missing where that fails.

    Args:
        apply: What is traced, of params, inputs and rngs: the model as it is called.
        apply_fn: The model itself.
        params: Its variables.
        inputs: Its inputs, as arrays or their shapes.
        rngs: Its random keys by name.
    """
    try:
        named = {name: key for name, key in rngs.items() if name != OWN_KEY}
        check_call(apply_fn, inputs, **({"rngs": named} if named else {}))
        return trace(apply, params, inputs, rngs)
    except Exception as error:
        if type(error).__name__ == "TraceContextError":  # Flax's
            error.add_note(
                "apply_fn writes to an NNX object that it closed over; pass the model itself, as "
                "in jinit.calibrate(model, lambda m, x: m(x), x, loss)"
            )
        if _are_single_integers(jax.tree.leaves(inputs)):
            error.add_note(
                "dummy_input holds single numbers: for inputs of a shape pass jnp.ones(shape)"
            )
        advice = _in_place_of(apply_fn)
        if advice and advice not in str(error):
            error.add_note(advice)
        if type(error).__name__ != "InvalidRngError":  # Flax's; it need not be installed
            raise
        name = describe_call(apply_fn)
        raise ValueError(
            f"{name} needs random keys that it was not given ({error}); pass rngs=('dropout',) "
            "with the names it asks for, or take a key among the inputs and hand it on"
        ) from error


def _are_single_integers(leaves: Sequence[Any]) -> bool:
    """Returns whether inputs may be a shape that was given in place of an array."""
    single = [x.shape == () and np.issubdtype(x.dtype, np.integer) for x in leaves]
    return bool(single) and all(single)


def check_loss_depends(
    dummy_loss: Callable[..., Any],
    output: PyTree,
    key: Key,
    apply_fn: Callable[..., Any],
    has_aux: bool,
) -> None:
    """Raises ValueError unless a loss is a real scalar that depends on the model's output."""
    with explaining_pairs(output, apply_fn, "pass has_aux=True", has_aux):
        loss = trace(lambda out, key: call_loss(dummy_loss, out, key), output, key)
    reached = set(loss.jaxpr.invars[: len(jax.tree.leaves(output))])
    for equation in loss.jaxpr.eqns:
        if any(not isinstance(v, jex.Literal) and v in reached for v in equation.invars):
            reached.update(equation.outvars)
    (result,) = loss.jaxpr.outvars
    if isinstance(result, jex.Literal) or result not in reached:
        raise ValueError(
            f"dummy_loss does not depend on the output of {describe_call(apply_fn)}; "
            "compute it from its first argument"
        )


def check_pair(returned: Any, apply_fn: Any) -> None:
    """Raises TypeError unless a model returned an output and something beside it."""
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        raise TypeError(
            f"has_aux=True asks for (output, aux), but {describe_call(apply_fn)} returned "
            f"{kind_of(returned)}; leave has_aux out, or return both, as Flax does with mutable="
        )


@contextlib.contextmanager
def explaining_pairs(
    output: Any, apply_fn: Any, advice: str, has_aux: bool = False
) -> Iterator[None]:
    """Raises ValueError where a loss fails on an output that has several parts.

    Args:
        output: What the loss is called with.
        apply_fn: The model.
        advice: What to do with state beside the output.
        has_aux: Whether something beside the output was dropped already.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(output, tuple) or (len(output) != 2 and not has_aux):
            raise
        name, failed = describe_call(apply_fn), f"on which dummy_loss failed ({error})"
        if has_aux:
            raise ValueError(
                f"has_aux=True takes the first part of what {name} returned for the output, a "
                f"tuple, {failed}; {_on_carry('leave has_aux out, and ')}"
            ) from error
        raise ValueError(f"{name} returned a pair, {failed}; {_on_pair(output, advice)}") from error


def _on_pair(pair: tuple[Any, ...], advice: str) -> str:
    """Says what to write for a pair; where its second part is no array, it is no output."""
    first, second = pair
    state = f"if its second part is state, as with Flax's mutable=, {advice}"
    if not _is_array(second):
        return state
    return f"{_on_carry()}; {state}" if _is_array(first) else _on_carry()


def _on_carry(first: str = "") -> str:
    return (
        "if its first part is a carry, as of a recurrent layer, "
        f"{first}let dummy_loss take the second, as in lambda y: loss(y[1])"
    )


def _is_array(part: Any) -> bool:
    return len(getattr(part, "shape", ())) > 0
