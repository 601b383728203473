"""Every model of linen and NNX with Keras's defaults, and 20 steps from there."""

import numpy as np
import pytest

from tests.frameworks import in_linen, in_nnx
from tests.frameworks.compare import distances, flat, in_common, largest
from tests.frameworks.recipes import RECIPES, Options, batches

pytestmark = [pytest.mark.cases, pytest.mark.usefixtures("allow_rank_promotion")]

OPTIONS = Options(rate=0.0, draw=lambda key, shape: 0.0, keras=True)
TOLERANCE = 1e-5  # as in ``test_plain``


@pytest.fixture(params=[pytest.param(name, id=name) for name in RECIPES])
def recipe(request):
    return RECIPES[request.param]


def test_linen_and_nnx_draw_from_the_same_distributions(recipe):
    drawn = [
        flat(in_common(module.NAME, recipe.name, module.beginning(start)))
        for module, start in both(recipe)
    ]
    for path, first in drawn[0].items():
        second = drawn[1][path]
        if first.std() == 0 or second.std() == 0:
            np.testing.assert_array_equal(first, second, err_msg=path)
        else:  # the largest of 32 uniform values or more is near the limit
            assert 0.75 < abs(first).max() / abs(second).max() < 1.33, path


def test_linen_and_nnx_train_alike(recipe):
    (_, (model, variables)), (_, module) = both(recipe)
    drawn = in_common("linen", recipe.name, (variables, None))
    in_nnx.fill(module, drawn)
    losses, end = in_linen.train((model, variables), recipe.loss, recipe.tx, batches(recipe.name))
    others, other_end = in_nnx.train(module, recipe.loss, recipe.tx, batches(recipe.name))
    np.testing.assert_allclose(losses, others, rtol=TOLERANCE)
    trees = in_common("linen", recipe.name, end), in_common("nnx", recipe.name, other_end)
    assert largest(distances(*trees)) < TOLERANCE


def both(recipe):
    x = batches(recipe.name)[0]["x"]
    return [(module, module.keras(recipe.name, OPTIONS, x)) for module in (in_linen, in_nnx)]


def test_a_step_moves_statistics_by_the_momentum_of_keras():
    recipe = RECIPES["mlp"]
    for module, start in both(recipe):
        _, end = module.train(start, recipe.loss, recipe.tx, batches(recipe.name)[:1])
        moved = in_common(module.NAME, recipe.name, end)["statistics"]["norm1"]["var"]
        assert (moved >= 0.99).all()  # by 0.9, as Flax has it, less
        assert (moved != 1).all()
