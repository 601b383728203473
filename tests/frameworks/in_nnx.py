"""The models as NNX modules."""

import operator

import jax.numpy as jnp
import optax
from flax import nnx

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
    SERIES,
    VOCABULARY,
    WIDTH,
)

NAME = "nnx"


class MLP(nnx.Module):
    def __init__(self, options, rngs):
        self.dense1 = nnx.Linear(FEATURES, HIDDEN, use_bias=False, rngs=rngs)
        self.norm1 = nnx.BatchNorm(HIDDEN, **options.norm, rngs=rngs)
        self.dense2 = nnx.Linear(HIDDEN, HIDDEN, use_bias=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(HIDDEN, **options.norm, rngs=rngs)
        self.dropout = nnx.Dropout(options.rate, rngs=rngs)
        self.head = nnx.Linear(HIDDEN, CLASSES, rngs=rngs)

    def __call__(self, x):
        x = self.dropout(nnx.relu(self.norm1(self.dense1(x))))
        x = self.dropout(nnx.relu(self.norm2(self.dense2(x))))
        return self.head(x)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm1 = nnx.LayerNorm(WIDTH, epsilon=EPSILON, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(WIDTH, epsilon=EPSILON, rngs=rngs)
        self.dense1 = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.dense2 = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x, mask):
        x = x + self.attention(self.norm1(x), mask=mask)
        return x + self.dense2(nnx.gelu(self.dense1(self.norm2(x))))


class Transformer(nnx.Module):
    def __init__(self, options, rngs):
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.positions = nnx.Param(0.02 * rngs.params.normal((LENGTH, WIDTH)))
        self.blocks = nnx.List([Block(rngs) for _ in range(BLOCKS)])
        self.norm = nnx.LayerNorm(WIDTH, epsilon=EPSILON, rngs=rngs)
        self.head = nnx.Linear(WIDTH, VOCABULARY, rngs=rngs)

    def __call__(self, tokens, place=None):
        """With a place, where the one token stands, the keys before it are in the cache."""
        places = (0 if place is None else place) + jnp.arange(tokens.shape[1])
        x = self.embed(tokens) + self.positions[places]
        mask = nnx.make_causal_mask(tokens) if place is None else None
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x))


class Residual(nnx.Module):
    def __init__(self, options, rngs):
        self.conv1 = nnx.Conv(CHANNELS, CHANNELS, (3, 3), use_bias=False, rngs=rngs)
        self.norm1 = nnx.BatchNorm(CHANNELS, **options.norm, rngs=rngs)
        self.conv2 = nnx.Conv(CHANNELS, CHANNELS, (3, 3), use_bias=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(CHANNELS, **options.norm, rngs=rngs)

    def __call__(self, x):
        y = nnx.relu(self.norm1(self.conv1(x)))
        return nnx.relu(x + self.norm2(self.conv2(y)))


class ResNet(nnx.Module):
    def __init__(self, options, rngs):
        self.conv = nnx.Conv(3, CHANNELS, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(CHANNELS, **options.norm, rngs=rngs)
        self.blocks = nnx.List([Residual(options, rngs) for _ in range(BLOCKS)])
        self.head = nnx.Linear(CHANNELS, CLASSES, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


class LSTM(nnx.Module):
    def __init__(self, options, rngs):
        self.lstm = nnx.RNN(nnx.OptimizedLSTMCell(SERIES, HIDDEN, rngs=rngs), rngs=rngs)
        self.head = nnx.Linear(HIDDEN, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.head(self.lstm(x)[:, -1])


class VAE(nnx.Module):
    def __init__(self, options, rngs):
        self.draw = options.draw
        self.rngs = rngs
        self.encoder = nnx.Linear(FEATURES, HIDDEN, rngs=rngs)
        self.mean = nnx.Linear(HIDDEN, LATENT, rngs=rngs)
        self.variance = nnx.Linear(HIDDEN, LATENT, rngs=rngs)
        self.decoder = nnx.Linear(LATENT, HIDDEN, rngs=rngs)
        self.head = nnx.Linear(HIDDEN, FEATURES, rngs=rngs)

    def __call__(self, x):
        h = nnx.relu(self.encoder(x))
        mean, variance = self.mean(h), self.variance(h)
        z = mean + jnp.exp(variance / 2) * self.draw(self.rngs.noise(), mean.shape)
        return self.head(nnx.relu(self.decoder(z))), mean, variance


class Tied(nnx.Module):
    def __init__(self, options, rngs):
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.dense1 = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.dense2 = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        return self.embed.attend(x + self.dense2(nnx.gelu(self.dense1(x))))


MODULES = {
    "mlp": MLP,
    "transformer": Transformer,
    "resnet": ResNet,
    "lstm": LSTM,
    "vae": VAE,
    "tied": Tied,
}


def rngs():
    return nnx.Rngs(params=0, dropout=1, noise=2, carry=3)


def make(recipe, options, common):
    """The module."""
    model = MODULES[recipe.name](options, rngs())
    fill(model, common)
    return model


def fill(model, common):
    """Sets the parameters and statistics of a module."""
    tree = own(common)
    nnx.update(model, nested(tree["params"]))
    nnx.update(model, nested(tree["statistics"]))


def own(common):
    """The common tree in this framework's layout, but for lists, which are ``blocks_0``."""
    params = {**common["params"]}
    if "lstm" in params:
        lstm = params["lstm"]
        params["lstm"] = {"cell": {"dense_i": lstm["input"], "dense_h": lstm["hidden"]}}
    return {"params": params, "statistics": common["statistics"]}


def nested(tree):
    """Writes ``blocks_0`` as the first of ``blocks``."""
    blocks = {int(name.removeprefix("blocks_")): tree[name] for name in tree if "blocks_" in name}
    rest = {name: tree[name] for name in tree if "blocks_" not in name}
    return {**rest, "blocks": blocks} if blocks else rest


def flat(tree):
    """The other way."""
    tree = {**tree}
    blocks = tree.pop("blocks", {})
    return tree | {f"blocks_{number}": block for number, block in blocks.items()}


def beginning(start):
    """The start as a training of no steps returns it."""
    return start, None


def arrays(trained):
    """Parameters and statistics of what a training returns."""
    model, _ = trained
    params, statistics = nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat)
    return {
        "params": flat(nnx.to_pure_dict(params)),
        "statistics": flat(nnx.to_pure_dict(statistics)),
    }


def train(model, loss, tx, batches, apply_fn=operator.call):
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, batch):
        def loss_fn(model):
            return loss(apply_fn(model, batch["x"]), batch)

        value, grads = nnx.value_and_grad(loss_fn)(model)
        optimizer.update(model, grads)
        return value

    losses = [step(model, optimizer, batch) for batch in batches]
    return losses, (model, optimizer)


def initialize(model, level):
    return amp.initialize(model, opt_level=level)


def train_amp(model, loss, tx, batches, level, **options):
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    model, optimizer = amp.initialize(model, optimizer, level, **options)

    @nnx.jit
    def step(model, optimizer, batch):
        def loss_fn(model):
            return loss(model(batch["x"]), batch)

        value, grads = amp.value_and_grad(loss_fn, optimizer)(model)
        optimizer.update(model, grads)
        return value

    losses = [step(model, optimizer, batch) for batch in batches]
    return losses, (model, optimizer)


def train_in_one_call(model, loss, tx, batches, level, **options):
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    model, optimizer = amp.initialize(model, optimizer, level, **options)
    step = amp.train_step(lambda model, batch: loss(model(batch["x"]), batch))
    losses = [step(model, optimizer, batch) for batch in batches]
    return losses, (model, optimizer)


def fold(model, loss, batch, rate):
    result = jinit.calibrate(
        model,
        batch["x"],
        lambda outputs: loss(outputs, batch),
        optimizer="sgd",
    )
    tx = optax.chain(optax.trace(0.9), result.transform(), optax.scale_by_learning_rate(rate))
    return result.params, tx


def explicit(model, loss, batch):
    result = jinit.calibrate(
        model,
        batch["x"],
        lambda outputs: loss(outputs, batch),
        optimizer="sgd",
        mode="explicit",
    )
    return result.params, {"apply_fn": result.apply_fn}


def keras(name, options, x):
    return jinit.keras_defaults()(MODULES[name])(options, rngs())


def decode(model, tokens, at):
    """The logits of the tokens, one after the other through the cache, and all at once."""
    model = at(model)
    full = nnx.jit(lambda model, tokens: model(tokens))(model, tokens)
    model.set_attributes(decode=True)
    for block in model.blocks:
        block.attention.init_cache((*tokens.shape, WIDTH))
    step = nnx.jit(lambda model, token, place: model(token, place))
    logits = [step(model, tokens[:, place : place + 1], place) for place in range(LENGTH)]
    return jnp.concatenate(logits, 1), full
