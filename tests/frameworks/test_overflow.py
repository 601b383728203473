"""A batch that overflows is a step that was not: nothing that was trained or moved keeps of it."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.frameworks.cells import cells
from tests.frameworks.compare import FRAMEWORKS, everything, started
from tests.frameworks.recipes import COMMON, RECIPES, batches

pytestmark = pytest.mark.usefixtures("allow_rank_promotion")

BEFORE = 8  # steps, in which the scale comes down to where float16 does not overflow by itself


def poisoned(batch):
    """One example that is not finite, or for tokens a loss that is not."""
    if batch["x"].dtype == np.float32:
        return batch | {"x": np.concatenate([np.full_like(batch["x"][:1], np.inf), batch["x"][1:]])}
    return batch | {"weight": np.float32(np.inf)}


def trained(framework, name, level, given, how="train_amp"):
    recipe, start = RECIPES[name], started(framework, name, COMMON)
    train = getattr(FRAMEWORKS[framework], how)
    options = {"half_dtype": "float16", "loss_scale": "dynamic"}
    losses, end = train(start, recipe.loss, recipe.tx, given, level, **options)
    return np.array(losses), everything(end)


def assert_nothing_is_left(framework, name, level, how):
    """The momentum alone would move every parameter in a step that was not skipped."""
    given = batches(name)
    broken = [*given[:BEFORE], poisoned(given[BEFORE])]
    _, before = trained(framework, name, level, given[:BEFORE], how)
    _, after = trained(framework, name, level, broken, how)
    assert before.keys() == after.keys()
    for path, value in before.items():
        assert np.isfinite(jnp.asarray(value, float)).all(), path
        if "['count']" not in path:  # what was drawn at random was drawn
            np.testing.assert_array_equal(after[path], value, err_msg=path)


@pytest.mark.parametrize(
    ("framework", "name", "level"),
    cells(columns=["O1", "O2", "O3"], quick={("linen", "mlp")}, quick_column="O2"),
)
def test_a_batch_that_overflows_leaves_everything_as_it_was(framework, name, level):
    assert_nothing_is_left(framework, name, level, "train_amp")


@pytest.mark.parametrize(("framework", "name"), cells(quick=()))
def test_so_does_a_step_in_one_call(framework, name):
    assert_nothing_is_left(framework, name, "O2", "train_in_one_call")


@pytest.mark.parametrize(("framework", "name"), cells(quick=()))
def test_training_goes_on_as_if_it_had_not_been(framework, name):
    """But for the scale, a power of two: what it divides by is exact where nothing underflows."""
    given = batches(name)
    broken = [*given[:BEFORE], poisoned(given[BEFORE]), *given[BEFORE:]]
    expected, _ = trained(framework, name, "O2", given)
    losses, after = trained(framework, name, "O2", broken)
    half = jnp.finfo(jnp.float16).eps
    np.testing.assert_allclose(np.delete(losses, BEFORE), expected, rtol=0, atol=4 * half)
    assert all(np.isfinite(value.astype(float)).all() for value in after.values())
