"""The models as functions of Haiku's modules."""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jinit
from jinit import amp
from tests.frameworks.recipes import (
    BLOCKS,
    CHANNELS,
    CLASSES,
    EPSILON,
    FEATURES,
    HEADS,
    HIDDEN,
    LATENT,
    LENGTH,
    MOMENTUM,
    VOCABULARY,
    WIDTH,
)

NAME = "haiku"


def batch_norm(name):
    return hk.BatchNorm(True, True, MOMENTUM, eps=EPSILON, name=name)


def layer_norm(name):
    return hk.LayerNorm(-1, True, True, eps=EPSILON, name=name)


def conv(name):
    return hk.Conv2D(CHANNELS, 3, with_bias=False, name=name)


def mlp(options, x, train=True):
    for number in "12":
        x = hk.Linear(HIDDEN, with_bias=False, name=f"dense{number}")(x)
        x = jax.nn.relu(batch_norm(f"norm{number}")(x, is_training=train))
        if train and options.rate:
            x = hk.dropout(hk.next_rng_key(), options.rate, x)
    return hk.Linear(CLASSES, name="head")(x)


class Attention(hk.Module):
    """Causal attention; Haiku's own has no cache."""

    def __call__(self, x, decode, place):
        split = (*x.shape[:2], HEADS, WIDTH // HEADS)
        query, key, value = (
            hk.Linear(WIDTH, name=name)(x).reshape(split) for name in ("query", "key", "value")
        )
        if decode:
            whole = (len(x), LENGTH, *split[2:])
            keys, values = (
                hk.get_state(name, whole, jnp.float32, init=jnp.zeros)
                for name in ("cached_key", "cached_value")
            )
            key, value = keys.at[:, place].set(key[:, 0]), values.at[:, place].set(value[:, 0])
            hk.set_state("cached_key", key)
            hk.set_state("cached_value", value)
        seen = (place + jnp.arange(x.shape[1]))[:, None] >= jnp.arange(key.shape[1])[None]
        scores = jnp.einsum("bthk,bshk->bhts", query / split[-1] ** 0.5, key)
        weights = jax.nn.softmax(jnp.where(seen, scores, jnp.finfo(scores.dtype).min))
        mixed = jnp.einsum("bhts,bshk->bthk", weights, value)
        return hk.Linear(WIDTH, name="out")(mixed.reshape(x.shape))


class Block(hk.Module):
    def __call__(self, x, decode, place):
        x = x + Attention(name="attention")(layer_norm("norm1")(x), decode, place)
        y = hk.Linear(2 * WIDTH, name="dense1")(layer_norm("norm2")(x))
        return x + hk.Linear(WIDTH, name="dense2")(jax.nn.gelu(y))


def transformer(options, tokens, place=0, *, decode=False):
    places = place + jnp.arange(tokens.shape[1])
    positions = hk.get_parameter("positions", (LENGTH, WIDTH), init=hk.initializers.Constant(0))
    x = hk.Embed(VOCABULARY, WIDTH, name="embed")(tokens) + positions[places]
    for number in range(BLOCKS):
        x = Block(name=f"blocks_{number}")(x, decode, place)
    return hk.Linear(VOCABULARY, name="head")(layer_norm("norm")(x))


class Residual(hk.Module):
    def __call__(self, x, train):
        y = jax.nn.relu(batch_norm("norm1")(conv("conv1")(x), is_training=train))
        return jax.nn.relu(x + batch_norm("norm2")(conv("conv2")(y), is_training=train))


def resnet(options, x, train=True):
    x = jax.nn.relu(batch_norm("norm")(conv("conv")(x), is_training=train))
    for number in range(BLOCKS):
        x = Residual(name=f"blocks_{number}")(x, train)
    return hk.Linear(CLASSES, name="head")(x.mean((1, 2)))


def lstm(options, x):
    core = hk.LSTM(HIDDEN, name="lstm")
    states, _ = hk.dynamic_unroll(core, x, core.initial_state(len(x)), time_major=False)
    return hk.Linear(CLASSES, name="head")(states[:, -1])


def vae(options, x):
    h = jax.nn.relu(hk.Linear(HIDDEN, name="encoder")(x))
    mean, variance = hk.Linear(LATENT, name="mean")(h), hk.Linear(LATENT, name="variance")(h)
    z = mean + jnp.exp(variance / 2) * options.draw(hk.next_rng_key(), mean.shape)
    h = jax.nn.relu(hk.Linear(HIDDEN, name="decoder")(z))
    return hk.Linear(FEATURES, name="head")(h), mean, variance


def tied(options, tokens):
    embed = hk.Embed(VOCABULARY, WIDTH, name="embed")
    x = embed(tokens)
    y = jax.nn.gelu(hk.Linear(2 * WIDTH, name="dense1")(x))
    return (x + hk.Linear(WIDTH, name="dense2")(y)) @ embed.embeddings.T


FUNCTIONS = {
    function.__name__: function for function in (mlp, transformer, resnet, lstm, vae, tied)
}


def make(recipe, options, common):
    """The transformed pair, its parameters and its state."""
    tree = own(common)
    model = hk.transform_with_state(functools.partial(FUNCTIONS[recipe.name], options))
    state = {
        name: {"average": hidden, "counter": np.int32(0), "hidden": hidden}
        for name, hidden in tree["statistics"].items()
    }
    return model, tree["params"], state


_NAMES = {"kernel": "w", "bias": "b", "embedding": "embeddings"}


def own(common):
    """The common tree in this framework's layout."""
    params, statistics = {}, {}
    _collect_params(params, common["params"], "")
    _collect_statistics(statistics, common["statistics"], "")
    return {"params": params, "statistics": statistics}


def _collect_params(found, tree, path):
    for name, value in tree.items():
        inside = f"{path}/{name}" if path else name
        if name == "positions":
            found["~"] = {"positions": value}
        elif name == "lstm":
            found["lstm/linear"] = _joined(value)
        elif "scale" in value:
            axes = 4 if "conv" in " ".join(tree) else 2
            shape = (1,) * (axes - 1) + (-1,)
            flat = {"scale": value["scale"], "offset": value["bias"]}
            batched = not {"attention", "embed"} & {*tree}
            found[inside] = {k: v.reshape(shape) if batched else v for k, v in flat.items()}
        elif "kernel" in value or "embedding" in value:
            found[inside] = {_NAMES[leaf]: _plain(leaf, v, name) for leaf, v in value.items()}
        else:
            _collect_params(found, value, inside)


def _plain(leaf, value, name):
    """Without an axis of heads."""
    if name in ("query", "key", "value"):
        return value.reshape(*value.shape[:-2], -1)
    return value.reshape(-1, value.shape[-1]) if name == "out" and leaf == "kernel" else value


def _joined(lstm):
    """One layer of input and state, the gates as i, g, f, o, and 1 added to f in the cell."""
    i, f, g, o = jnp.split(
        jnp.concatenate([lstm["input"]["kernel"], lstm["hidden"]["kernel"]]), 4, -1
    )
    w = jnp.concatenate([i, g, f, o], -1)
    i, f, g, o = jnp.split(lstm["hidden"]["bias"], 4)
    return {"w": w, "b": jnp.concatenate([i, g, f - 1, o])}


def _collect_statistics(found, tree, path):
    for name, value in tree.items():
        inside = f"{path}/{name}" if path else name
        if "mean" not in value:
            _collect_statistics(found, value, inside)
            continue
        axes = 4 if name == "norm" or path else 2
        for kind, leaf in value.items():
            found[f"{inside}/~/{kind}_ema"] = leaf.reshape((1,) * (axes - 1) + (-1,))


def beginning(start):
    """The start as a training of no steps returns it."""
    _, params, state = start
    return params, state, None


def arrays(trained):
    """Parameters and statistics of what a training returns."""
    params, state, _ = trained
    return {"params": params, "statistics": {name: ema["hidden"] for name, ema in state.items()}}


def train(start, loss, tx, batches, apply_fn=None):
    model, params, state = start
    apply_fn = apply_fn or model.apply
    opt_state = tx.init(params)

    @jax.jit
    def step(params, state, opt_state, batch):
        def loss_fn(params):
            outputs, new = apply_fn(params, state, batch["key"], batch["x"])
            return loss(outputs, batch), new

        (value, new), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), new, opt_state, value

    losses = []
    for batch in batches:
        params, state, opt_state, value = step(params, state, opt_state, batch)
        losses.append(value)
    return losses, (params, state, opt_state)


def initialize(start, level):
    model, params, state = start
    return amp.initialize(model, opt_level=level), params, state


def train_amp(start, loss, tx, batches, level, **options):
    model, params, state = start
    model, tx = amp.initialize(model, tx, level, **options)
    params = model.policy.cast_to_param(params)
    opt_state = tx.init(params)

    @jax.jit
    def step(params, state, opt_state, batch):
        def loss_fn(params):
            outputs, new = model.apply(params, state, batch["key"], batch["x"])
            return loss(outputs, batch), new

        (value, new), grads = amp.value_and_grad(loss_fn, opt_state, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        new = amp.where_finite(grads, new, state)
        return optax.apply_updates(params, updates), new, opt_state, value

    losses = []
    for batch in batches:
        params, state, opt_state, value = step(params, state, opt_state, batch)
        losses.append(value)
    return losses, (params, state, opt_state)


def train_in_one_call(start, loss, tx, batches, level, **options):
    model, params, state = start
    model, tx = amp.initialize(model, tx, level, **options)
    params = model.policy.cast_to_param(params)
    opt_state = tx.init(params)

    def loss_fn(variables, batch):
        params, state = variables["params"], variables["state"]
        outputs, new = model.apply(params, state, batch["key"], batch["x"])
        return loss(outputs, batch), {"state": new}

    step = amp.train_step(loss_fn, tx)
    variables, losses = {"params": params, "state": state}, []
    for batch in batches:
        variables, opt_state, value = step(variables, opt_state, batch)
        losses.append(value)
    return losses, (variables["params"], variables["state"], opt_state)


def fold(start, loss, batch, rate):
    model, params, state = start
    result = jinit.calibrate(
        (params, state),
        model,
        batch["x"],
        lambda outputs: loss(outputs, batch),
        optimizer="sgd",
    )
    tx = optax.chain(optax.trace(0.9), result.transform(), optax.scale_by_learning_rate(rate))
    params, _ = result.params
    return (model, params, state), tx


def explicit(start, loss, batch):
    model, params, state = start
    result = jinit.calibrate(
        (params, state),
        model,
        batch["x"],
        lambda outputs: loss(outputs, batch),
        optimizer="sgd",
        mode="explicit",
    )
    params, _ = result.params
    return (model, params, state), {"apply_fn": result.apply_fn}


def decode(start, tokens, at):
    """The logits of the tokens, one after the other through the cache, and all at once."""
    model, params, _ = start
    decoding = functools.partial(transformer, None, decode=True)
    model, decoder = at(model), at(hk.transform_with_state(decoding))
    _, state = decoder.init(jax.random.key(0), tokens[:, :1], 0)
    step = jax.jit(decoder.apply)
    logits = []
    for place in range(LENGTH):
        one, state = step(params, state, None, tokens[:, place : place + 1], place)
        logits.append(one)
    return jnp.concatenate(logits, 1), jax.jit(model.apply)(params, {}, None, tokens)[0]
