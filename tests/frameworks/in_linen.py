"""The models as linen modules."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
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
    VOCABULARY,
    WIDTH,
    Options,
)

NAME = "linen"


def layer_norm(name):
    return nn.LayerNorm(epsilon=EPSILON, name=name)


class MLP(nn.Module):
    options: Options

    @nn.compact
    def __call__(self, x, train=True):
        for number in "12":
            x = nn.Dense(HIDDEN, use_bias=False, name=f"dense{number}")(x)
            x = nn.BatchNorm(not train, **self.options.norm, name=f"norm{number}")(x)
            x = nn.Dropout(self.options.rate, deterministic=not train)(nn.relu(x))
        return nn.Dense(CLASSES, name="head")(x)


class Block(nn.Module):
    decode: bool

    @nn.compact
    def __call__(self, x, mask):
        y = layer_norm("norm1")(x)
        x = x + nn.MultiHeadAttention(HEADS, decode=self.decode, name="attention")(y, mask=mask)
        y = nn.Dense(2 * WIDTH, name="dense1")(layer_norm("norm2")(x))
        return x + nn.Dense(WIDTH, name="dense2")(nn.gelu(y))


class Transformer(nn.Module):
    options: Options
    decode: bool = False

    @nn.compact
    def __call__(self, tokens, place=0):
        positions = self.param("positions", nn.initializers.normal(0.02), (LENGTH, WIDTH))
        places = place + jnp.arange(tokens.shape[1])
        x = nn.Embed(VOCABULARY, WIDTH, name="embed")(tokens) + positions[places]
        mask = None if self.decode else nn.make_causal_mask(tokens)
        for number in range(BLOCKS):
            x = Block(self.decode, name=f"blocks_{number}")(x, mask)
        return nn.Dense(VOCABULARY, name="head")(layer_norm("norm")(x))


class Residual(nn.Module):
    options: Options

    def setup(self):
        self.conv1, self.conv2 = (nn.Conv(CHANNELS, (3, 3), use_bias=False) for _ in range(2))
        self.norm1, self.norm2 = (nn.BatchNorm(**self.options.norm) for _ in range(2))

    def __call__(self, x, train):
        y = nn.relu(self.norm1(self.conv1(x), use_running_average=not train))
        return nn.relu(x + self.norm2(self.conv2(y), use_running_average=not train))


class ResNet(nn.Module):
    options: Options

    def setup(self):
        self.conv = nn.Conv(CHANNELS, (3, 3), use_bias=False)
        self.norm = nn.BatchNorm(**self.options.norm)
        self.blocks = [Residual(self.options) for _ in range(BLOCKS)]
        self.head = nn.Dense(CLASSES)

    def __call__(self, x, train=True):
        x = nn.relu(self.norm(self.conv(x), use_running_average=not train))
        for block in self.blocks:
            x = block(x, train)
        return self.head(x.mean((1, 2)))


class LSTM(nn.Module):
    options: Options

    @nn.compact
    def __call__(self, x):
        states = nn.RNN(nn.OptimizedLSTMCell(HIDDEN, name="lstm"))(x)
        return nn.Dense(CLASSES, name="head")(states[:, -1])


class VAE(nn.Module):
    options: Options

    @nn.compact
    def __call__(self, x):
        h = nn.relu(nn.Dense(HIDDEN, name="encoder")(x))
        mean, variance = nn.Dense(LATENT, name="mean")(h), nn.Dense(LATENT, name="variance")(h)
        noise = self.options.draw(self.make_rng("noise"), mean.shape)
        h = nn.relu(nn.Dense(HIDDEN, name="decoder")(mean + jnp.exp(variance / 2) * noise))
        return nn.Dense(FEATURES, name="head")(h), mean, variance


class Tied(nn.Module):
    options: Options

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(VOCABULARY, WIDTH, name="embed")
        x = embed(tokens)
        y = nn.gelu(nn.Dense(2 * WIDTH, name="dense1")(x))
        return embed.attend(x + nn.Dense(WIDTH, name="dense2")(y))


MODULES: dict[str, Callable[..., Any]] = {
    "mlp": MLP,
    "transformer": Transformer,
    "resnet": ResNet,
    "lstm": LSTM,
    "vae": VAE,
    "tied": Tied,
}


def make(recipe, options, common):
    """The module and its variables."""
    return MODULES[recipe.name](options), own(common)


def own(common):
    """The common tree in this framework's layout."""
    params = {**common["params"]}
    if "lstm" in params:
        params["lstm"] = _gates(params["lstm"])
    statistics = {"batch_stats": common["statistics"]} if common["statistics"] else {}
    return {"params": params, **statistics}


def _gates(lstm):
    """An input's and a state's layer for each of the four gates."""
    layers = {}
    for side, leaves in (("i", lstm["input"]), ("h", lstm["hidden"])):
        parts = {name: jnp.split(leaf, 4, -1) for name, leaf in leaves.items()}
        for number, gate in enumerate("ifgo"):
            layers[side + gate] = {name: part[number] for name, part in parts.items()}
    return layers


def beginning(start):
    """The start as a training of no steps returns it."""
    _, variables = start
    return variables, None


def arrays(trained):
    """Parameters and statistics of what a training returns."""
    variables, _ = trained
    return {name: tree for name, tree in variables.items() if name in ("params", "batch_stats")}


def train(start, loss, tx, batches, apply_fn=None):
    model, variables = start
    apply_fn = apply_fn or model.apply
    opt_state = tx.init(variables["params"])

    @jax.jit
    def step(variables, opt_state, batch):
        def loss_fn(params):
            rngs = {"dropout": batch["key"], "noise": batch["key"]}
            outputs, new = apply_fn(
                {**variables, "params": params}, batch["x"], rngs=rngs, mutable=["batch_stats"]
            )
            return loss(outputs, batch), new

        params = variables["params"]
        (value, new), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return {**variables, "params": params, **new}, opt_state, value

    losses = []
    for batch in batches:
        variables, opt_state, value = step(variables, opt_state, batch)
        losses.append(value)
    return losses, (variables, opt_state)


def initialize(start, level):
    model, variables = start
    return amp.initialize(model, opt_level=level), variables


def train_amp(start, loss, tx, batches, level, **options):
    model, variables = start
    model, tx = amp.initialize(model, tx, level, **options)
    variables = model.policy.cast_to_param(variables)
    opt_state = tx.init(variables["params"])

    @jax.jit
    def step(variables, opt_state, batch):
        def loss_fn(params):
            rngs = {"dropout": batch["key"], "noise": batch["key"]}
            outputs, new = model.apply(
                {**variables, "params": params}, batch["x"], rngs=rngs, mutable=["batch_stats"]
            )
            return loss(outputs, batch), new

        params = variables["params"]
        (value, new), grads = amp.value_and_grad(loss_fn, opt_state, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        new = amp.where_finite(grads, new, {name: variables[name] for name in new})
        return {**variables, "params": params, **new}, opt_state, value

    losses = []
    for batch in batches:
        variables, opt_state, value = step(variables, opt_state, batch)
        losses.append(value)
    return losses, (variables, opt_state)


def train_in_one_call(start, loss, tx, batches, level, **options):
    model, variables = start
    model, tx = amp.initialize(model, tx, level, **options)
    variables = model.policy.cast_to_param(variables)
    opt_state = tx.init(variables["params"])

    def loss_fn(variables, batch):
        rngs = {"dropout": batch["key"], "noise": batch["key"]}
        outputs, new = model.apply(variables, batch["x"], rngs=rngs, mutable=["batch_stats"])
        return loss(outputs, batch), new

    step = amp.train_step(loss_fn, tx)
    losses = []
    for batch in batches:
        variables, opt_state, value = step(variables, opt_state, batch)
        losses.append(value)
    return losses, (variables, opt_state)


def fold(start, loss, batch, rate):
    model, variables = start
    result = jinit.calibrate(
        variables,
        model,
        batch["x"],
        lambda outputs: loss(outputs, batch),
        optimizer="sgd",
        rngs=("dropout", "noise"),
    )
    tx = optax.chain(optax.trace(0.9), result.transform(), optax.scale_by_learning_rate(rate))
    return (model, result.params), tx


def explicit(start, loss, batch):
    model, variables = start
    result = jinit.calibrate(
        variables,
        model,
        batch["x"],
        lambda outputs: loss(outputs, batch),
        optimizer="sgd",
        mode="explicit",
        rngs=("dropout", "noise"),
    )
    return (model, result.params), {"apply_fn": result.apply_fn}


def keras(name, options, x):
    model = jinit.keras_defaults().wrap(MODULES[name](options))
    return model, model.init({"params": jax.random.key(0), "noise": jax.random.key(1)}, x)


def decode(start, tokens, at):
    """The logits of the tokens, one after the other through the cache, and all at once."""
    model, variables = start
    model, decoder = at(model), at(model.clone(decode=True))
    cache = decoder.init(jax.random.key(0), tokens)["cache"]

    @jax.jit
    def step(cache, token, place):
        both = {**variables, "cache": cache}
        return decoder.apply(both, token, place, mutable=["cache"])

    logits = []
    for place in range(LENGTH):
        one, updated = step(cache, tokens[:, place : place + 1], place)
        cache = updated["cache"]
        logits.append(one)
    return jnp.concatenate(logits, 1), jax.jit(model.apply)(variables, tokens)
