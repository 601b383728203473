"""Every model of the zoo: activations, gradients and updates of O(1) on held-out keys.

What is measured by the report is measured once more from outside, by Flax's capture or by hand.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jinit
from tests.empirical import zoo_functions, zoo_linen
from tests.empirical.zoo import BRIEFLY, CASES, SETTINGS, SLOW, THOROUGHLY, Case

pytestmark = pytest.mark.usefixtures("allow_rank_promotion")

assert zoo_functions
assert zoo_linen

HELD_OUT = 16
"""Keys that a site's output is averaged over."""

ACTIVATION, OTHERS = (0.9, 1.1), (0.67, 1.5)


def each(*settings: tuple[str, str]) -> Any:
    """Runs a test on every case in these settings."""
    runs = [
        pytest.param(name, *setting, marks=marks(name, setting), id="-".join((name, *setting)))
        for name in CASES
        for setting in settings
    ]
    return pytest.mark.parametrize(("name", "mode", "optimizer"), runs)


def marks(name: str, setting: tuple[str, str]) -> list[Any]:
    slow = name in SLOW or name not in BRIEFLY[setting]
    thorough = name in THOROUGHLY.get(setting, ())
    return [pytest.mark.slow] if slow else [pytest.mark.thorough] if thorough else []


every = each(*SETTINGS)


@functools.cache
def built(name: str) -> Case:
    return CASES[name]()


@functools.cache
def calibrated(name: str, mode: str, optimizer: str) -> Any:
    """Calibrates a case; in explicit mode in the form whose sites can be watched.

    There the gradient of one batch of these few rows may be several times that of another, in a
    deep network or behind a switch: from eight keys its mean is known to a third at best.
    """
    found = built(name)
    options = {"optimizer": optimizer, **found.options, **mode_options(mode)}
    return jinit.calibrate(found.params, model_of(found, mode), found.draw, found.loss, **options)


def model_of(found: Case, mode: str) -> Any:
    if mode == "fold":
        return found.apply_fn
    bound = getattr(found.apply_fn, "keywords", {})  # of a partial
    return (
        functools.partial(found.captured, rngs=bound["rngs"])
        if "rngs" in bound
        else (found.captured)
    )


def mode_options(mode: str) -> dict[str, Any]:
    return {} if mode == "fold" else {"mode": mode, "has_aux": True, "samples": 64}


@functools.cache
def from_outside(name: str, mode: str, optimizer: str) -> dict[str, np.ndarray]:
    """Measures the RMS of what every layer produces on keys that calibrated nothing.

    Returns:
        By the leaf's path an array of shape (own iterations..., uses); 0 where a use produced
        nothing.
    """
    found, result = built(name), calibrated(name, mode, optimizer)
    model = found.captured if mode == "fold" else result.apply_fn

    def powers(key: jax.Array) -> Any:
        outputs = model(result.params, *found.inputs(key), **found.keywords(key))[1]
        return {
            path: [mean_square(y, number(found.scans, path)) for y in uses]
            for path, uses in outputs.items()
        }

    keys = jax.random.split(jax.random.key(99), HELD_OUT)
    measured = jax.jit(lambda keys: jax.lax.map(powers, keys))(keys)
    return {
        path: by_use([mean_over_keys(np.asarray(power)) for power in uses], number(found.own, path))
        for path, uses in measured.items()
    }


def mean_square(y: jax.Array, scans: int) -> jax.Array:
    y = jnp.abs(y).astype(jnp.float32)
    return jnp.mean(y * y, axis=tuple(range(scans, y.ndim)))


def mean_over_keys(power: np.ndarray) -> np.ndarray:
    """Averages over the keys on which something was produced: a branch may not be taken."""
    return power.sum(0) / np.maximum((power != 0).sum(0), 1)


def by_use(powers: list[np.ndarray], own: int) -> np.ndarray:
    flat = [power.reshape(*power.shape[: abs(own)], -1) for power in powers]
    return np.sqrt(np.concatenate(flat, -1))


def number(table: dict[str, int], path: str) -> int:
    return next((n for pattern, n in table.items() if re.fullmatch(pattern, path)), 0)


def matches(patterns: Iterable[str], path: str) -> bool:
    return any(re.fullmatch(pattern, path) for pattern in patterns)


def base(path: str) -> str:
    """Returns the leaf's path of a row's, which may name an iteration."""
    return re.sub(r"(\[\d+\])+$", "", path)


def outside(bounds: tuple[float, float], values: dict[str, float]) -> dict[str, float]:
    low, high = bounds
    return {name: value for name, value in values.items() if not low < value < high}


def geometric_mean(values: Any) -> float:
    """The mean over the uses that produced something."""
    values = np.asarray(values, np.float64)
    return float(np.exp(np.mean(np.log(values[values > 0]))))


def tuned_rows(found: Case, report: Any) -> list[Any]:
    """The rows of sites with a leaf of their own that produced something and may be scaled."""
    left = left_alone(found, report)
    alone = [row for row in report.rows if not matches(found.shared, base(row.path))]
    return [row for row in alone if base(row.path) not in left]


def left_alone(found: Case, report: Any) -> set[str]:
    """The leaves that are not scaled, as the report lists them and the case allows."""
    null = {base(path) for path in report.null if matches(found.null, base(path))}
    return {*report.not_tuned, *report.unused, *null}


# -- activations ------------------------------------------------------------------------------


@pytest.mark.cases
@every
def test_activations_by_the_report(name, mode, optimizer):
    rows = tuned_rows(built(name), calibrated(name, mode, optimizer).report)
    assert rows or built(name).shared
    assert outside(ACTIVATION, {row.path: row.activation_after for row in rows}) == {}


@pytest.mark.cases
@every
def test_activations_from_outside(name, mode, optimizer):
    found, report = built(name), calibrated(name, mode, optimizer).report
    sizes = from_outside(name, mode, optimizer)
    left = left_alone(found, report)
    known = set(sizes) - left
    seen = {base(row.path) for row in report.rows if not matches(found.unseen, base(row.path))}
    assert seen - left <= known or not sizes
    alone = {
        f"{path}{list(place)}": float(size)
        for path in known
        if not matches(found.shared, path)
        for place, size in np.ndenumerate(sizes[path])
    }
    assert outside(ACTIVATION, alone) == {}
    means = {
        f"{path}{list(place)}": geometric_mean(sizes[path][place])
        for path in known
        if matches(found.shared, path)
        for place in np.ndindex(sizes[path].shape[:-1])
    }
    assert outside(ACTIVATION, means) == {}


# -- gradients and updates --------------------------------------------------------------------


@pytest.mark.cases
@every
def test_gradients_and_updates(name, mode, optimizer):
    """Only explicit mode sets gradients; in both the update is that of a unit step."""
    found, report = built(name), calibrated(name, mode, optimizer).report
    rows = [row for row in tuned_rows(found, report) if not vanishing(found, report, row)]
    assert outside(OTHERS, {row.path: row.update_after for row in rows}) == {}
    if mode == "explicit":
        gradients = {row.path: row.gradient_after for row in rows if row.gradient_after is not None}
        assert outside(OTHERS, gradients) == {}


def vanishing(found: Case, report: Any, row: Any) -> bool:
    return row.path in report.null and matches(found.perhaps_null, row.path)


@pytest.mark.thorough
@each(("explicit", "sgd"), ("explicit", "adam"))
def test_gradients_and_updates_of_shared_leaves(name, mode, optimizer):
    found, report = built(name), calibrated(name, mode, optimizer).report
    for statistic in ("gradient_after", "update_after"):
        groups: dict[str, list[float]] = {}
        for row in report.rows:
            value = getattr(row, statistic)
            if value and matches(found.shared, base(row.path)) and row.path not in report.null:
                groups.setdefault(slice_of(found, row.path), []).append(value)
        means = {path: geometric_mean(values) for path, values in groups.items()}
        assert outside(OTHERS, means) == {}


def slice_of(found: Case, path: str) -> str:
    """Keeps of a row's iterations those that slice the leaf."""
    own, places = number(found.own, base(path)), re.findall(r"\[\d+\]", path)
    return base(path) + "".join(places[own:] if own < 0 else places[:own])


# -- what is listed ---------------------------------------------------------------------------


@pytest.mark.thorough
@every
def test_what_is_left_alone_is_listed_with_its_reason(name, mode, optimizer):
    found, report = built(name), calibrated(name, mode, optimizer).report
    allowed = {**found.not_tuned, **found.perhaps_not_tuned}
    for path, reason in report.not_tuned.items():
        if reason.startswith("its layer is scaled by "):
            continue
        assert [why for pattern, why in allowed.items() if re.fullmatch(pattern, path)] == [reason]
    assert [p for p in found.not_tuned if not any_matches(p, report.not_tuned)] == []


@every
def test_what_passes_nothing_is_listed(name, mode, optimizer):
    found, report = built(name), calibrated(name, mode, optimizer).report
    null = {base(path) for path in report.null}
    assert [pattern for pattern in found.null if not any_matches(pattern, null)] == []
    allowed = (*found.null, *found.perhaps_null, *found.unused)
    wrong = [p for p in report.null if not matches(allowed, p) and not matches(allowed, base(p))]
    assert wrong == []
    assert [path for path in report.unused if not matches(found.unused, path)] == []
    assert [pattern for pattern in found.unused if not any_matches(pattern, report.unused)] == []


@pytest.mark.cases
@every
def test_shared_leaves_are_listed_with_their_residual(name, mode, optimizer):
    found, report = built(name), calibrated(name, mode, optimizer).report
    sizes = from_outside(name, mode, optimizer)
    for path, residual in report.shared.items():
        assert matches(found.shared, base(path))
        uses = sizes.get(base(path), np.ones(()))
        expected = np.exp(np.max(np.abs(np.log(uses[uses > 0])), initial=0.0))
        assert np.isfinite(residual)
        assert base(path) not in sizes or residual == pytest.approx(expected, rel=0.2)
    listed = {base(path) for path in (*report.shared, *report.not_tuned)}
    assert [path for path in found.shared if not any_matches(path, listed)] == []


def any_matches(pattern: str, paths: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, path) for path in paths)


@every
def test_no_leaf_is_passed_over_in_silence(name, mode, optimizer):
    """Each was scaled, is in a row or a list, or is the bias of a layer that is."""
    result, report = calibrated(name, mode, optimizer), calibrated(name, mode, optimizer).report
    listed = {base(row.path) for row in report.rows}
    listed |= {path for row in report.rows for path in row.joined}
    listed |= {base(path) for path in (*report.not_tuned, *report.unused, *report.null)}
    layers = {layer_of(path) for path in listed}
    before, after = named_leaves(built(name).params), named_leaves(result.params)
    silent = [
        path
        for (path, old), (_, new) in zip(before, after, strict=True)
        if jnp.issubdtype(old.dtype, jnp.inexact)
        and path not in listed
        and not (re.search(r"\bb(ias)?\b", path) and layer_of(path) in layers)
        and np.array_equal(old, new)
    ]
    assert silent == []


def layer_of(path: str) -> str:
    return path.removesuffix("/value").rpartition("/")[0]


def named_leaves(params: Any) -> list[tuple[str, Any]]:
    if isinstance(params, dict) and "params" in params:
        params = {"params": params["params"]}
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    ]


@every
def test_everything_is_finite_and_keeps_its_form(name, mode, optimizer):
    found, result = built(name), calibrated(name, mode, optimizer)
    for leaf in jax.tree.leaves((result.params, result.multipliers, result.scales)):
        assert np.isfinite(np.asarray(leaf, np.float32)).all()
    for row in result.report.rows:
        numbers = [v for v in dataclasses.astuple(row) if isinstance(v, float)]
        assert np.isfinite(numbers).all(), row
    params = without_scales(result.params)
    assert jax.tree.structure(params) == jax.tree.structure(found.params)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(found.params), strict=True)
    assert all((new.shape, new.dtype) == (old.shape, old.dtype) for new, old in pairs)


def without_scales(params: Any) -> Any:
    """Takes the collection away that explicit mode adds to Flax variables."""
    if isinstance(params, dict) and "normed" in params:
        return {name: tree for name, tree in params.items() if name != "normed"}
    return params


# -- several devices --------------------------------------------------------------------------


def spread(leaf: Any, mesh: Mesh) -> jax.Array:
    """Divides a leaf's last axis over the devices where that is possible."""
    divided = leaf.ndim > 1 and leaf.shape[-1] % mesh.size == 0
    spec = P(*[None] * (leaf.ndim - 1), "d") if divided else P()
    return jax.device_put(leaf, NamedSharding(mesh, spec))


@pytest.mark.cases
@pytest.mark.parametrize("mode", ["fold", "explicit"])
@pytest.mark.parametrize("name", ["mlp_4_relu", "cnn", "attention_key_bias"])
def test_eight_devices_find_the_same_scales_as_one(name, mode):
    """Multipliers too, but for the attention keys', whose bias has a gradient that is rounding.

    Adam's first step is its sign, and a sum in another order turns some of them.
    """
    found, alone = built(name), calibrated(name, mode, "adam")
    mesh = Mesh(np.array(jax.devices()), ("d",))
    params = jax.tree.map(lambda leaf: spread(leaf, mesh), found.params)
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(params))

    def draw(key):
        return jax.lax.with_sharding_constraint(found.draw(key), NamedSharding(mesh, P("d")))

    model, options = model_of(found, mode), mode_options(mode)
    result = jinit.calibrate(params, model, draw, found.loss, **options)
    pairs = zip(named_leaves(result.scales), named_leaves(alone.scales), strict=True)
    for (path, new), (_, old) in pairs:  # those of explicit mode hold the multipliers
        loose = mode == "explicit" and re.search(r"\bkey/", path)
        np.testing.assert_allclose(new, old, rtol=0.2 if loose else 1e-5, err_msg=path)
    pairs = zip(named_leaves(result.multipliers), named_leaves(alone.multipliers), strict=True)
    for (path, new), (_, old) in pairs:
        np.testing.assert_allclose(new, old, rtol=0.2 if "/key/" in path else 1e-5, err_msg=path)
    kept = jax.tree.leaves(without_scales(result.params))
    for new, old in zip(kept, jax.tree.leaves(params), strict=True):
        assert new.sharding.is_equivalent_to(old.sharding, old.ndim)
