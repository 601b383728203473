"""Every model of every framework calibrated as its users hold it, and 20 steps from there."""

import functools

import jax
import numpy as np
import optax
import pytest

from tests.frameworks.cells import cells
from tests.frameworks.compare import (
    FRAMEWORKS,
    distances,
    everything,
    in_common,
    largest,
    started,
)
from tests.frameworks.recipes import COMMON, RECIPES, batches, begun

pytestmark = pytest.mark.usefixtures("allow_rank_promotion")

RATE = 0.03

# The passes of calibrate add roundings of their own to those of 20 steps: see ``test_plain``.
TOLERANCE = 1e-4

# Layers are what a framework makes one product of: of an LSTM linen has eight, Haiku one, Equinox
# adds the bias to the sum of two; the others add it to the product with the state.
OTHER_LAYERS = {("linen", "lstm"), ("haiku", "lstm"), ("equinox", "lstm")}

# A norm's gain is multiplied by 1 / sqrt(var) first and by the values then, in Equinox by values
# that are normalized: its step is measured where it is multiplied.
OTHER_GAINS = {("equinox", name) for name in ("mlp", "transformer", "resnet")}


@functools.cache
def calibrated(framework, name):
    """The tree that calibrate returned, the losses of 20 steps from it, and their end."""
    module, recipe = FRAMEWORKS[framework], RECIPES[name]
    start = started(framework, name, COMMON)
    before = everything(module.beginning(start))
    scaled, tx = module.fold(start, recipe.loss, batches(name)[0], RATE)
    np.testing.assert_equal(everything(module.beginning(start)), before)
    tree = in_common(framework, name, module.beginning(scaled))
    losses, end = module.train(scaled, recipe.loss, tx, batches(name))
    return tree, np.array(losses), in_common(framework, name, end)


@pytest.mark.parametrize(("framework", "name"), cells(quick={("plain", "mlp")}))
def test_folded_it_trains_and_is_the_same_in_every_framework(framework, name):
    tree, losses, end = calibrated(framework, name)
    same = distances(tree["statistics"], begun(name)["statistics"])
    assert all(distance < 1e-6 for distance in jax.tree.leaves(same)), same
    assert losses[-5:].mean() < 0.95 * losses[:5].mean(), losses
    if (framework, name) in OTHER_LAYERS:
        return
    expected_tree, expected_losses, expected_end = calibrated("plain", name)
    assert largest(distances(tree, expected_tree)) < TOLERANCE
    if (framework, name) not in OTHER_GAINS:
        np.testing.assert_allclose(losses, expected_losses, rtol=TOLERANCE)
        assert largest(distances(end, expected_end)) < TOLERANCE


@functools.cache
def calibrated_explicitly(framework, name):
    """The losses of 20 steps of what calibrate returned in explicit mode, and their end."""
    module, recipe = FRAMEWORKS[framework], RECIPES[name]
    start = started(framework, name, COMMON)
    kept, applied = module.explicit(start, recipe.loss, batches(name)[0])
    losses, end = module.train(kept, recipe.loss, optax.sgd(RATE, 0.9), batches(name), **applied)
    return np.array(losses), in_common(framework, name, end)


@pytest.mark.parametrize(("framework", "name"), cells(quick=()))
def test_explicit_scales_train_and_are_the_same_in_every_framework(framework, name):
    losses, end = calibrated_explicitly(framework, name)
    assert losses[-5:].mean() < 0.95 * losses[:5].mean(), losses
    if begun(name)["statistics"]:
        assert min(jax.tree.leaves(distances(end["statistics"], begun(name)["statistics"]))) > 0.01
    if (framework, name) not in OTHER_LAYERS | OTHER_GAINS:
        expected_losses, expected_end = calibrated_explicitly("plain", name)
        np.testing.assert_allclose(losses, expected_losses, rtol=TOLERANCE)
        assert largest(distances(end, expected_end)) < TOLERANCE
