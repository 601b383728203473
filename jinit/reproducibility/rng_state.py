"""The state of all streams of a run, to be saved in a checkpoint and put back."""

import contextlib
import random
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from jinit._kinds import kind_of
from jinit.reproducibility.gather import gather
from jinit.reproducibility.generators import require_mt19937
from jinit.reproducibility.keys import check_name, pack_key, place_key, registered_keys
from jinit.reproducibility.processes import process_count, process_index
from jinit.reproducibility.schema import (
    NumpyState,
    ProcessState,
    PythonState,
    expected,
    member,
    read_state,
    refuse,
)

if TYPE_CHECKING:
    import jax

__all__ = ["get_rng_state", "load_rng_state"]


def get_rng_state(keys: "Mapping[str, jax.Array] | None" = None) -> list[ProcessState]:
    """Gathers the state of Python's and NumPy's generators and of JAX keys, of all processes.

    The entry of a process is plain data, arrays and numbers::

        {"python": {"version": 3, "state": uint32[625], "has_gauss": 0 or 1, "gauss": float},
         "numpy": {"state": uint32[624], "pos": int, "has_gauss": 0 or 1, "gauss": float},
         "keys": {name: {implementation: uint32[..., words]}}}

    where the implementation is the PRNG's name, such as ``threefry2x32``, or ``raw`` for a legacy
    key. So it goes through orbax's ``StandardCheckpointer`` as it is, and through
    ``json.dumps(state, default=lambda array: array.tolist())``. The generators of PyTorch,
    TensorFlow and of data-loading workers are not in it.

    Args:
        keys: JAX keys by name, typed of any shape or legacy; those of ``register_key`` are
            added. Replicated and sharded keys are saved whole, without their sharding, which
            ``load_rng_state`` takes from the run that goes on.

    Returns:
        A list indexed by process, the same on each; every process of the run must call it. A
        single process starts no backend for it.

    Raises:
        TypeError: A key is none, or is traced; a name is not a string.
        ValueError: A name is registered too; a key is empty, deleted, or sharded over processes.
        RuntimeError: NumPy's global generator is not MT19937.

    Example:
        >>> import random, jax
        >>> state = get_rng_state({"dropout": jax.random.key(42)})
        >>> state[0]["keys"]["dropout"]
        {'threefry2x32': array([ 0, 42], dtype=uint32)}
        >>> drawn = random.random()
        >>> keys = load_rng_state(state)
        >>> random.random() == drawn, bool(keys["dropout"] == jax.random.key(42))
        (True, True)

    Source:
        ``composer.utils.reproducibility.get_rng_state``, which pickles.
    """
    if keys is not None and not isinstance(keys, Mapping):
        raise TypeError(f"The keys must be a dict of JAX keys by name, not {kind_of(keys)}.")
    require_mt19937()
    packed = {name: pack_key(name, key) for name, key in _with_registered(keys or {}).items()}
    return gather({"python": _python_state(), "numpy": _numpy_state(), "keys": packed})


def load_rng_state(
    state: Sequence[Mapping[str, object]],
    shardings: "Mapping[str, jax.sharding.Sharding] | None" = None,
) -> "dict[str, jax.Array]":
    """Puts back this process's streams from what ``get_rng_state`` returned.

    Python's and NumPy's generators continue bit for bit, cached Gaussian numbers included, and
    registered keys are set in their places, sharded as the keys there are. All entries are
    validated before anything is changed, and where a registered key's ``set`` raises, what was
    changed is put back.

    Args:
        state: A list with an entry for each process. Numbers may have become zero-dimensional
            arrays, and arrays JAX arrays or, in JSON, lists.
        shardings: Where keys of the state are put, by name: a key that is at hand has its own as
            ``key.sharding``. The others go to the default device, and a registered key to where
            the key in its place is, if that was put somewhere and is of the same shape.

    Returns:
        This process's keys by name: typed with their implementation, or legacy. Empty
        where the state has no entry for this process.

    Raises:
        ValueError: The state is corrupt or foreign, or lacks a registered key or one of
            ``shardings``; the text names each field at fault. Or a sharding does not fit its
            key. Nothing was changed.
        RuntimeError: NumPy's global generator is not MT19937.

    Warns:
        UserWarning: The state is of a run with another number of processes; those that it has an
            entry for are restored.

    Example:
        >>> import json, random
        >>> text = json.dumps(get_rng_state(), default=lambda array: array.tolist())
        >>> drawn = random.gauss(0, 1)
        >>> load_rng_state(json.loads(text))
        {}
        >>> random.gauss(0, 1) == drawn
        True

    Source:
        ``composer.utils.reproducibility.load_rng_state``.
    """
    entries = read_state(state)
    require_mt19937()
    count, index = process_count(), process_index()
    kept = index >= len(entries)
    if not kept:
        _require_keys(f"rng_state[{index}]", entries[index]["keys"], shardings or {})
    if len(entries) != count:
        warnings.warn(_size_warning(len(entries), count, index, kept), stacklevel=2)
    return {} if kept else _restore(entries[index], shardings or {})


def _with_registered(keys: "Mapping[str, jax.Array]") -> "dict[str, jax.Array]":
    places = registered_keys()
    for name in keys:
        check_name(name)
        if name in places:
            raise ValueError(f"The key {name!r} is registered too: pass it under another name.")
    return {**keys, **{name: place.get() for name, place in places.items()}}


def _python_state() -> PythonState:
    import numpy as np

    version, state, gauss = random.getstate()
    return {
        "version": version,
        "state": np.asarray(state, np.uint32),
        "has_gauss": int(gauss is not None),
        "gauss": gauss or 0.0,
    }


def _numpy_state() -> NumpyState:
    import numpy as np

    saved = cast(tuple[Any, ...], np.random.get_state(legacy=True))
    _, state, pos, has_gauss, gauss = saved
    return {"state": state, "pos": pos, "has_gauss": has_gauss, "gauss": gauss}


def _require_keys(path: str, keys: Mapping[str, Any], shardings: Mapping[str, object]) -> None:
    wanted = dict.fromkeys(shardings, "the key of shardings")
    wanted |= dict.fromkeys(registered_keys(), "the registered key")
    problems: list[str] = []
    for name, what in wanted.items():
        if name not in keys:
            expected(problems, member(f'{path}["keys"]', name), what)
    refuse(problems)


def _size_warning(entries: int, count: int, index: int, kept: bool) -> str:
    fate = "has no entry in it and keeps its streams" if kept else "is restored from its entry"
    return (
        f"The RNG state is of {entries} process(es), but this run has {count}: process {index} "
        f"{fate}."
    )


def _restore(entry: dict[str, Any], shardings: Mapping[str, Any]) -> "dict[str, jax.Array]":
    places = registered_keys()
    there = {name: place.get() for name, place in places.items()}
    keys = {
        name: place_key(name, key, shardings.get(name), there.get(name))
        for name, key in entry["keys"].items()
    }
    with contextlib.ExitStack() as undo:
        _set_generators(entry, undo)
        for name, place in places.items():
            undo.callback(place.set, there[name])
            place.set(keys[name])
        undo.pop_all()
    return keys


def _set_generators(entry: dict[str, Any], undo: contextlib.ExitStack) -> None:
    import numpy as np

    python, numpy = entry["python"], entry["numpy"]
    gauss = python["gauss"] if python["has_gauss"] else None
    undo.callback(random.setstate, random.getstate())
    random.setstate((python["version"], tuple(python["state"].tolist()), gauss))
    undo.callback(np.random.set_state, np.random.get_state())
    np.random.set_state(
        ("MT19937", numpy["state"], numpy["pos"], numpy["has_gauss"], numpy["gauss"])
    )
