"""Where JAX keys live, and keys as plain data: ``{implementation: words}``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jax
    import numpy as np

__all__ = ["Place", "pack_key", "place_key", "register_key", "registered_keys", "wrap_key"]

LEGACY = "raw"
"""Stands for the implementation of a legacy key, which does not know its own."""


@dataclass(frozen=True)
class Place:
    """Where a key lives."""

    get: Callable[[], "jax.Array"]
    set: Callable[["jax.Array"], object]


_PLACES: dict[str, Place] = {}


def register_key(
    name: str, get: Callable[[], "jax.Array"], set: Callable[["jax.Array"], object]
) -> Callable[[], None]:
    """Registers where a key lives, so that RNG states hold it and loading one puts it back.

    Args:
        name: What the state calls the key.
        get: Returns the key, typed of any shape or legacy.
        set: Puts a key of the same kind in its place; one that raises should have changed
            nothing, or nothing that setting the old key would not mend.

    Returns:
        A function that ends the registration; calling it again does nothing.

    Raises:
        TypeError: ``name`` is not a string, or ``get`` or ``set`` cannot be called.
        ValueError: The name is empty or already registered.

    Example:
        >>> import jax
        >>> from jinit.reproducibility import get_rng_state, load_rng_state
        >>> streams = {"dropout": jax.random.key(1)}
        >>> unregister = register_key(
        ...     "dropout", lambda: streams["dropout"], lambda key: streams.update(dropout=key)
        ... )
        >>> state = get_rng_state()
        >>> streams["dropout"] = jax.random.key(2)
        >>> keys = load_rng_state(state)
        >>> bool(streams["dropout"] == jax.random.key(1))
        True
        >>> unregister()
    """
    check_name(name)
    for role, function in (("get", get), ("set", set)):
        if not callable(function):
            raise TypeError(f"{role} must be a function, not {function!r}.")
    if name in _PLACES:
        raise ValueError(
            f"The key {name!r} is already registered: unregister it first, or choose another name."
        )
    place = _PLACES[name] = Place(get, set)

    def unregister() -> None:
        if _PLACES.get(name) is place:
            del _PLACES[name]

    return unregister


def registered_keys() -> dict[str, Place]:
    """The place of each registered key by name."""
    return dict(_PLACES)


def check_name(name: Any) -> None:
    """Refuses what cannot name a key."""
    if not isinstance(name, str):
        raise TypeError(f"The name of a key must be a string, not {name!r}.")
    if not name:
        raise ValueError("The name of a key must not be empty.")


def pack_key(name: str, key: Any) -> "dict[str, np.ndarray]":
    """Makes plain data of a key: ``{"threefry2x32": uint32[..., 2]}``, ``{"raw": ...}``."""
    import jax
    import numpy as np

    _check_readable(name, key)
    local = _local(name, key)
    if jax.numpy.issubdtype(key.dtype, jax.dtypes.prng_key):
        return {str(jax.random.key_impl(local)): np.asarray(jax.random.key_data(local))}
    if not _is_legacy(local):
        raise TypeError(_refusal(name, f"is no key but {key.dtype}{list(key.shape)}"))
    return {LEGACY: np.asarray(local)}


def wrap_key(implementation: str, data: "np.ndarray") -> "jax.Array":
    """Makes a key of plain data again; TypeError or ValueError where JAX finds none in it."""
    import jax

    words = jax.numpy.asarray(data)
    if implementation != LEGACY:
        return jax.random.wrap_key_data(words, impl=implementation)
    return jax.random.key_data(jax.random.wrap_key_data(words))


def place_key(name: str, key: "jax.Array", sharding: Any, there: Any) -> "jax.Array":
    """Puts a key where it is wanted, or where the one is whose place it takes.

    Args:
        name: The key's name, for the error.
        key: The key, on the default device.
        sharding: A ``jax.sharding.Sharding``, or None.
        there: The key that it replaces, or None. Where that was not put anywhere, or is of
            another shape, the new one stays where it is.
    """
    import jax

    if sharding is None and _is_placed(there) and there.shape == key.shape:
        sharding = there.sharding
    if sharding is None:
        return key
    try:
        # device_put refuses typed keys where another process has some of the devices
        return jax.jit(lambda key: key, out_shardings=sharding)(key)
    except (TypeError, ValueError) as error:
        fault = f"of shape {key.shape} cannot be put on {sharding}: {error}"
        raise ValueError(_refusal(name, fault)) from error


def _is_placed(key: Any) -> bool:
    """Whether somebody chose the devices of a key; one that is deleted still tells."""
    import jax
    from jax.core import Tracer

    return isinstance(key, jax.Array) and not isinstance(key, Tracer) and key.committed


def _check_readable(name: str, key: Any) -> None:
    import jax
    import numpy as np
    from jax.core import Tracer

    if isinstance(key, Tracer):
        raise TypeError(_refusal(name, "is traced and has no value: call this outside of jit"))
    if not isinstance(key, jax.Array | np.ndarray):
        raise TypeError(_refusal(name, f"is no key but {key!r}"))
    if isinstance(key, jax.Array) and key.is_deleted():
        raise ValueError(_refusal(name, "was deleted, as a donated argument is: keep the new one"))
    if key.size == 0:
        raise ValueError(_refusal(name, f"is an empty array of shape {key.shape}"))


def _is_legacy(key: Any) -> bool:
    try:
        wrap_key(LEGACY, key)
    except TypeError:
        return False
    return True


def _local(name: str, key: Any) -> Any:
    """The part of a key that this process can read, if it is the whole."""
    import numpy as np

    if isinstance(key, np.ndarray) or key.is_fully_addressable:
        return key
    if key.is_fully_replicated:
        return key.addressable_data(0)
    raise ValueError(
        _refusal(name, "is sharded over several processes: replicate it, or save it as an array")
    )


def _refusal(name: str, fault: str) -> str:
    return f"The key {name!r} {fault}."
