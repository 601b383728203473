"""What a framework's training ended with, in the common layout and as all its leaves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.frameworks import in_equinox, in_haiku, in_linen, in_nnx, in_plain
from tests.frameworks.recipes import RECIPES, batches, begun

FRAMEWORKS = {each.NAME: each for each in (in_linen, in_nnx, in_equinox, in_haiku, in_plain)}


def started(framework, name, options):
    return FRAMEWORKS[framework].make(RECIPES[name], options, begun(name))


@functools.cache
def plainly_trained(framework, name, options):
    """The losses, and what the training without jinit ended with."""
    recipe = RECIPES[name]
    start = started(framework, name, options)
    losses, end = FRAMEWORKS[framework].train(start, recipe.loss, recipe.tx, batches(name))
    return np.array(losses), end


def in_common(framework, name, end):
    """Parameters and statistics in float32 in the common layout.

    Layouts are permutations and sums with constants: their transposes take them back.
    """
    module = FRAMEWORKS[framework]
    zeros = jax.tree.map(jnp.zeros_like, begun(name))
    constants, back = jax.vjp(module.own, zeros)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), module.arrays(end))
    return back(jax.tree.map(jnp.subtract, wide, constants))[0]


def everything(trained):
    """Every number that a training left by its path: of modules, states, and the momentum."""
    *rest, optimizer = (nnx.state(each) if _is_nnx(each) else each for each in trained)
    found = flat(rest)
    for path, value in flat(optimizer).items():
        _, trace, after = path.partition("trace")
        if trace:
            found[trace + after] = value
    return found


def _is_nnx(each):
    return isinstance(each, nnx.Module | nnx.Optimizer)


def flat(tree):
    """Every number and array by its path."""
    return {
        jax.tree_util.keystr(path): np.asarray(_data(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if isinstance(leaf, jax.Array | np.ndarray | float)
    }


def _data(leaf):
    keys = jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if keys else leaf


def distances(found, expected):
    """Of every leaf the largest difference, relative to the largest value expected in it.

    Or to a hundredth: a bias that begins at 0 and that the loss does not see holds only roundings.
    """

    def distance(found, expected):
        return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 0.01))

    return jax.tree.map(distance, found, expected)


def largest(tree):
    return max(jax.tree.leaves(tree))


def distance(found, expected, begun):
    """The difference of two trees, relative to how far the training moved them; 0 of none."""
    moves = [jnp.sqrt(sum(_squares(a, b))) for a, b in ((found, expected), (expected, begun))]
    return float(moves[0] / moves[1]) if jax.tree.leaves(found) else 0.0


def _squares(tree, other):
    return [((a - b) ** 2).sum() for a, b in zip(*map(jax.tree.leaves, (tree, other)), strict=True)]
