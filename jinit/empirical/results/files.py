"""A calibration in a file: its arrays as NumPy keeps them, and all else as JSON among them.

The JSON holds trees as ``{"dict": ...}``, ``{"list": ...}``, ``{"tuple": ...}``, null, and
``{"array": number, "dtype": name}``; array n is the entry ``array_n`` of the npz archive, with the
bits of a dtype that NumPy lacks as unsigned integers, and the data of random keys, with their
generator as ``"key"``; of what JAX had no dtype for, ``"numpy": true``.
"""

import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jinit._kinds import kind_of
from jinit._trees import leaf_paths
from jinit.empirical.results.report import LayerRow, Report
from jinit.empirical.results.saved import Facts, Saved
from jinit.modules.kinds import has_variables, is_nnx_state, lacks_variables
from jinit.modules.model import call_itself, read_model

__all__ = ["applying", "read", "write"]

_FORMAT = 1
_NOT_ONE = "holds no calibration; pass what Calibration.save has written"


def write(path: str | os.PathLike[str], parts: Mapping[str, Any], findings: Saved) -> None:
    """Writes trees of arrays and the report; of a module its arrays, by their paths.

    Raises:
        TypeError: A tree holds something that JSON and npz have no place for; nothing is written.
    """
    arrays: list[np.ndarray] = []
    facts = findings.facts
    head = {
        "format": _FORMAT,
        "name": facts.name,
        "wrapped": facts.wrapped,
        "inside": facts.inside,
        "collection": facts.collection,
        "parameters": facts.parameters,
        "alone": facts.alone,
        "report": facts.report.to_dict(),
        "growth": _encoded(findings.growth, "growth", arrays),
        "parts": {name: _encoded(_plain(tree), name, arrays) for name, tree in parts.items()},
    }
    entries: dict[str, Any] = {f"array_{number}": array for number, array in enumerate(arrays)}
    whole = Path(path)
    part = whole.with_name(f"{whole.name}.part")  # so that a full disk leaves what was there
    with part.open("wb") as file:
        np.savez(file, json=np.array(json.dumps(head)), **entries)
    part.replace(whole)


def read(
    path: str | os.PathLike[str], apply_fn: Callable[..., Any] | None, like: Any
) -> tuple[dict[str, Any], Saved]:
    """Reads what ``write`` wrote.

    Args:
        path: The file.
        apply_fn: The function that was calibrated, if given.
        like: A module like the one that was calibrated, if given; ``params`` is such a one then.

    Raises:
        ValueError: The file is not one of a calibration, or of a later format, or ``like`` is
            another module.
        TypeError: ``like`` is no module.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} {_NOT_ONE}")
    with np.load(path, allow_pickle=False) as archive:
        if "json" not in archive:
            raise ValueError(f"{path} {_NOT_ONE}")
        head = json.loads(str(archive["json"]))
        if head.get("format") != _FORMAT:
            raise ValueError(
                f"{path} has format {head.get('format')!r}, and this version of jinit reads "
                f"{_FORMAT}; read it with the version that wrote it"
            )
        parts = {name: _decoded(tree, archive) for name, tree in head["parts"].items()}
        growth = _decoded(head["growth"], archive)
    parameters, alone = head.get("parameters"), head.get("alone", False)
    if like is not None:
        parts["params"] = _restored(like, parts["params"])
        apply_fn = call_itself if apply_fn is None and alone else apply_fn
    facts = Facts(
        report=_report(head["report"]),
        name=head["name"],
        function=None,
        wrapped=head["wrapped"],
        inside=head["inside"],
        collection=head.get("collection"),
        parameters=None if parameters is None else tuple(parameters),
        alone=alone,
        given=apply_fn,
    )
    return parts, Saved(growth, facts)


def _restored(module: Any, params: Any) -> Any:
    """Returns a module with the arrays that were written of one like it.

    Raises:
        TypeError: It is no module that holds its variables.
        ValueError: They are not those of such a module.
    """
    if not has_variables(module):
        raise TypeError(
            f"like is {kind_of(module)}; pass a module that holds its variables, constructed as "
            "the one that was calibrated"
        )
    model = read_model(module)
    if model.open:  # linen's collections are nested by their paths already
        return model.restore(params)
    known = dict(zip(leaf_paths(params), jax.tree.leaves(params), strict=True))
    paths = leaf_paths(model.variables)
    if {*paths} != {*known}:
        lacking = ", ".join(sorted({*paths} ^ {*known})[:6])
        raise ValueError(
            f"like={type(module).__name__} is not of the kind that was calibrated: they differ in "
            f"{lacking}; construct it with the same arguments"
        )
    leaves, tree = jax.tree.flatten(model.variables)
    others = [
        f"{path} (is {jnp.shape(leaf)}, was {jnp.shape(known[path])})"
        for path, leaf in zip(paths, leaves, strict=True)
        if jnp.shape(leaf) != jnp.shape(known[path])
    ]
    if others:
        raise ValueError(
            f"like={type(module).__name__} has arrays of other shapes than the module that was "
            f"calibrated: {', '.join(others[:6])}; construct it with the same arguments"
        )
    return model.restore(jax.tree.unflatten(tree, [known[path] for path in paths]))


def applying(apply_fn: Any) -> Any:
    """Returns what applies a model, of a linen module or Haiku's pair their ``apply``.

    Raises:
        TypeError: A module that holds its variables stands in its place.
    """
    if has_variables(apply_fn):
        raise TypeError(
            f"apply_fn is a module that holds its variables ({type(apply_fn).__name__}); pass it "
            "as like=, and as apply_fn what calls it, such as lambda m, x: m(x)"
        )
    return apply_fn.apply if lacks_variables(apply_fn) else apply_fn


def _plain(tree: Any) -> Any:
    """Returns the arrays of a module, or of an NNX state, nested by their paths."""
    state = is_nnx_state(tree)
    if not state and not has_variables(tree):
        return tree
    variables, nested = read_model(tree).variables, {}
    for path, leaf in zip(leaf_paths(variables), jax.tree.leaves(variables), strict=True):
        *outer, name = path.split("/")
        inner = nested
        for part in outer:
            inner = inner.setdefault(part, {})
        inner[name] = leaf
    return nested


def _encoded(tree: Any, path: str, arrays: list[np.ndarray]) -> Any:
    if tree is None:
        return None
    if isinstance(tree, dict) and all(isinstance(key, str) for key in tree):
        return {"dict": {k: _encoded(v, f"{path}[{k!r}]", arrays) for k, v in tree.items()}}
    if type(tree) in (list, tuple):
        parts = [_encoded(value, f"{path}[{number}]", arrays) for number, value in enumerate(tree)]
        return {type(tree).__name__: parts}
    if not isinstance(tree, jax.Array | np.ndarray | np.generic | float | int):
        raise TypeError(
            f"a file holds dicts by string, lists, tuples and arrays, but {path} is of type "
            f"{type(tree).__name__}; pickle the calibration, or save such a tree with orbax"
        )
    if isinstance(tree, jax.Array) and jnp.issubdtype(tree.dtype, jax.dtypes.prng_key):
        arrays.append(np.asarray(jax.random.key_data(tree)))
        return {"array": len(arrays) - 1, "dtype": "uint32", "key": str(jax.random.key_impl(tree))}
    array = np.asarray(tree)
    arrays.append(array if array.dtype.isbuiltin == 1 else array.view(f"u{array.itemsize}"))
    # one in 64 bits, held beside JAX that has none
    foreign = {"numpy": True} if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype else {}
    return {"array": len(arrays) - 1, "dtype": array.dtype.name, **foreign}


def _decoded(tree: Any, archive: Mapping[str, np.ndarray]) -> Any:
    if tree is None:
        return None
    if "array" in tree:
        array, dtype = archive[f"array_{tree['array']}"], jnp.dtype(tree["dtype"])
        array = array if array.dtype == dtype else array.view(dtype)
        if "numpy" in tree:
            return array
        array = jnp.asarray(array)
        return jax.random.wrap_key_data(array, impl=tree["key"]) if "key" in tree else array
    ((kind, parts),) = tree.items()
    if kind == "dict":
        return {key: _decoded(value, archive) for key, value in parts.items()}
    values = [_decoded(value, archive) for value in parts]
    return tuple(values) if kind == "tuple" else values


def _report(data: dict[str, Any]) -> Report:
    rows = tuple(LayerRow(**{**row, "joined": tuple(row["joined"])}) for row in data["rows"])
    members = tuple(map(_report, data["members"]))
    missing = {path: tuple(what) for path, what in data["missing"].items()}
    tuples = {name: tuple(data[name]) for name in ("unused", "null", "zero")}
    return Report(**{**data, **tuples, "rows": rows, "members": members, "missing": missing})
