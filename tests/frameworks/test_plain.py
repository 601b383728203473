"""Without jinit all frameworks have the same six models, which the table's other tests build on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.frameworks.compare import (
    FRAMEWORKS,
    distances,
    flat,
    in_common,
    largest,
    plainly_trained,
    started,
)
from tests.frameworks.recipes import COMMON, OWN, RECIPES, batches, begun

pytestmark = [pytest.mark.cases, pytest.mark.usefixtures("allow_rank_promotion")]

OTHERS = [name for name in FRAMEWORKS if name != "plain"]

# Frameworks sum in different orders (a variance from squares or from distances, four gates apart
# or together): in float32 some tens of roundings of 2**-24 = 6e-8 in a step of sums over up to 576
# values, carried on by 20 steps. The largest that was seen is 2e-6.
TOLERANCE = 1e-5


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("framework", OTHERS)
def test_losses_parameters_and_statistics_are_the_same_in_every_framework(framework, name):
    losses, end = plainly_trained(framework, name, COMMON)
    expected, expected_end = plainly_trained("plain", name, COMMON)
    np.testing.assert_allclose(losses, expected, rtol=TOLERANCE)
    found, expected = in_common(framework, name, end), in_common("plain", name, expected_end)
    assert largest(distances(found, expected)) < TOLERANCE, distances(found, expected)


@pytest.mark.parametrize("name", RECIPES)
def test_training_learns_and_moves_every_leaf(name):
    losses, end = plainly_trained("plain", name, COMMON)
    assert losses[-5:].mean() < 0.9 * losses[:5].mean()
    moved = flat(distances(in_common("plain", name, end), begun(name)))
    still = {path for path, distance in moved.items() if distance < 1e-4}
    # The softmax does not see what is added to all keys alike.
    assert all("['key']['bias']" in path for path in still), still


@pytest.mark.parametrize("name", ["mlp", "vae"])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_each_framework_draws_from_a_stream_of_its_own(framework, name):
    common, own = (plainly_trained(framework, name, options)[0] for options in (COMMON, OWN))
    assert np.abs(own / common - 1).max() > 1e-2
    np.testing.assert_array_equal(own, trained_again(framework, name))


def trained_again(framework, name):
    recipe = RECIPES[name]
    start = started(framework, name, OWN)
    return np.array(FRAMEWORKS[framework].train(start, recipe.loss, recipe.tx, batches(name))[0])


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_common_layout_is_found_again(framework, name):
    module = FRAMEWORKS[framework]
    common = jax.tree.map(jnp.asarray, begun(name))
    start = started(framework, name, COMMON)
    found = in_common(framework, name, module.beginning(start))
    assert flat(found).keys() == flat(common).keys()
    assert largest(distances(found, common)) < 1e-6


@pytest.mark.thorough
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_decoding_through_the_cache_gives_the_logits_of_the_whole_pass(framework):
    """Sums of 16 and 32 values in other orders, through two blocks."""
    start = started(framework, "transformer", COMMON)
    tokens = batches("transformer")[0]["x"]
    stepwise, whole = FRAMEWORKS[framework].decode(start, tokens, lambda model: model)
    np.testing.assert_allclose(stepwise, whole, rtol=0, atol=TOLERANCE * np.abs(whole).max())
