"""The models as Equinox modules of one example."""

import equinox as eqx
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
    MOMENTUM,
    SERIES,
    VOCABULARY,
    WIDTH,
)

NAME = "equinox"


def batch_norm(size):
    return eqx.nn.BatchNorm(size, "batch", eps=EPSILON, momentum=MOMENTUM, mode="batch")


def conv(before, key):
    return eqx.nn.Conv2d(before, CHANNELS, 3, padding=1, use_bias=False, key=key)


class MLP(eqx.Module):
    dense1: eqx.nn.Linear
    norm1: eqx.nn.BatchNorm
    dense2: eqx.nn.Linear
    norm2: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self, options, key):
        keys = jax.random.split(key, 3)
        self.dense1 = eqx.nn.Linear(FEATURES, HIDDEN, use_bias=False, key=keys[0])
        self.norm1 = batch_norm(HIDDEN)
        self.dense2 = eqx.nn.Linear(HIDDEN, HIDDEN, use_bias=False, key=keys[1])
        self.norm2 = batch_norm(HIDDEN)
        self.dropout = eqx.nn.Dropout(options.rate)
        self.head = eqx.nn.Linear(HIDDEN, CLASSES, key=keys[2])

    def __call__(self, x, state, key):
        first, second = jax.random.split(key)
        x, state = self.norm1(self.dense1(x), state)
        x = self.dropout(jax.nn.relu(x), key=first)
        x, state = self.norm2(self.dense2(x), state)
        x = self.dropout(jax.nn.relu(x), key=second)
        return self.head(x), state


class Attention(eqx.Module):
    """Causal attention; Equinox's own has no cache."""

    query: eqx.nn.Linear
    key: eqx.nn.Linear
    value: eqx.nn.Linear
    out: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 4)
        self.query, self.key, self.value, self.out = (
            eqx.nn.Linear(WIDTH, WIDTH, key=key) for key in keys
        )

    def __call__(self, x, cache, place):
        split = (len(x), HEADS, WIDTH // HEADS)
        query, key, value = (
            jax.vmap(layer)(x).reshape(split) for layer in (self.query, self.key, self.value)
        )
        if cache is not None:
            key, value = cache[0].at[place].set(key[0]), cache[1].at[place].set(value[0])
            cache = key, value
        seen = (place + jnp.arange(len(x)))[:, None] >= jnp.arange(len(key))[None]
        scores = jnp.einsum("thk,shk->hts", query / split[-1] ** 0.5, key)
        weights = jax.nn.softmax(jnp.where(seen, scores, jnp.finfo(scores.dtype).min))
        mixed = jnp.einsum("hts,shk->thk", weights, value)
        return jax.vmap(self.out)(mixed.reshape(x.shape)), cache


class Block(eqx.Module):
    norm1: eqx.nn.LayerNorm
    attention: Attention
    norm2: eqx.nn.LayerNorm
    dense1: eqx.nn.Linear
    dense2: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.norm1 = eqx.nn.LayerNorm(WIDTH, eps=EPSILON)
        self.attention = Attention(keys[0])
        self.norm2 = eqx.nn.LayerNorm(WIDTH, eps=EPSILON)
        self.dense1 = eqx.nn.Linear(WIDTH, 2 * WIDTH, key=keys[1])
        self.dense2 = eqx.nn.Linear(2 * WIDTH, WIDTH, key=keys[2])

    def __call__(self, x, cache, place):
        y, cache = self.attention(jax.vmap(self.norm1)(x), cache, place)
        x = x + y
        y = jax.nn.gelu(jax.vmap(self.dense1)(jax.vmap(self.norm2)(x)))
        return x + jax.vmap(self.dense2)(y), cache


class Transformer(eqx.Module):
    embed: eqx.nn.Embedding
    positions: jax.Array
    blocks: list[Block]
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __init__(self, options, key):
        keys = jax.random.split(key, BLOCKS + 3)
        self.embed = eqx.nn.Embedding(VOCABULARY, WIDTH, key=keys[0])
        self.positions = 0.02 * jax.random.normal(keys[1], (LENGTH, WIDTH))
        self.head = eqx.nn.Linear(WIDTH, VOCABULARY, key=keys[2])
        self.blocks = [Block(key) for key in keys[3:]]
        self.norm = eqx.nn.LayerNorm(WIDTH, eps=EPSILON)

    def __call__(self, tokens, state, key=None, caches=(None,) * BLOCKS, place=0):
        """With caches, tokens is one, and the caches are returned in the place of the state."""
        places = place + jnp.arange(len(tokens))
        x = jax.vmap(self.embed)(tokens) + self.positions[places]
        new = []
        for block, cache in zip(self.blocks, caches, strict=True):
            x, cache = block(x, cache, place)
            new.append(cache)
        return jax.vmap(self.head)(jax.vmap(self.norm)(x)), state if new[0] is None else new


class Residual(eqx.Module):
    conv1: eqx.nn.Conv2d
    norm1: eqx.nn.BatchNorm
    conv2: eqx.nn.Conv2d
    norm2: eqx.nn.BatchNorm

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.conv1, self.norm1 = conv(CHANNELS, first), batch_norm(CHANNELS)
        self.conv2, self.norm2 = conv(CHANNELS, second), batch_norm(CHANNELS)

    def __call__(self, x, state):
        y, state = self.norm1(self.conv1(x), state)
        y, state = self.norm2(self.conv2(jax.nn.relu(y)), state)
        return jax.nn.relu(x + y), state


class ResNet(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    blocks: list[Residual]
    head: eqx.nn.Linear

    def __init__(self, options, key):
        keys = jax.random.split(key, BLOCKS + 2)
        self.conv, self.norm = conv(3, keys[0]), batch_norm(CHANNELS)
        self.blocks = [Residual(key) for key in keys[2:]]
        self.head = eqx.nn.Linear(CHANNELS, CLASSES, key=keys[1])

    def __call__(self, x, state, key=None):
        x, state = self.norm(self.conv(jnp.moveaxis(x, -1, 0)), state)
        x = jax.nn.relu(x)
        for block in self.blocks:
            x, state = block(x, state)
        return self.head(x.mean((1, 2))), state


class LSTM(eqx.Module):
    lstm: eqx.nn.LSTMCell
    head: eqx.nn.Linear

    def __init__(self, options, key):
        first, second = jax.random.split(key)
        self.lstm = eqx.nn.LSTMCell(SERIES, HIDDEN, key=first)
        self.head = eqx.nn.Linear(HIDDEN, CLASSES, key=second)

    def __call__(self, x, state, key=None):
        start = (jnp.zeros(HIDDEN, x.dtype), jnp.zeros(HIDDEN, x.dtype))
        (last, _), _ = jax.lax.scan(lambda carry, x: (self.lstm(x, carry), None), start, x)
        return self.head(last), state


class VAE(eqx.Module):
    draw: object = eqx.field(static=True)
    encoder: eqx.nn.Linear
    mean: eqx.nn.Linear
    variance: eqx.nn.Linear
    decoder: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, options, key):
        keys = jax.random.split(key, 5)
        self.draw = options.draw
        self.encoder = eqx.nn.Linear(FEATURES, HIDDEN, key=keys[0])
        self.mean = eqx.nn.Linear(HIDDEN, LATENT, key=keys[1])
        self.variance = eqx.nn.Linear(HIDDEN, LATENT, key=keys[2])
        self.decoder = eqx.nn.Linear(LATENT, HIDDEN, key=keys[3])
        self.head = eqx.nn.Linear(HIDDEN, FEATURES, key=keys[4])

    def __call__(self, x, state, key):
        h = jax.nn.relu(self.encoder(x))
        mean, variance = self.mean(h), self.variance(h)
        z = mean + jnp.exp(variance / 2) * self.draw(key, mean.shape)
        return (self.head(jax.nn.relu(self.decoder(z))), mean, variance), state


class Tied(eqx.Module):
    embed: eqx.nn.Embedding
    dense1: eqx.nn.Linear
    dense2: eqx.nn.Linear

    def __init__(self, options, key):
        keys = jax.random.split(key, 3)
        self.embed = eqx.nn.Embedding(VOCABULARY, WIDTH, key=keys[0])
        self.dense1 = eqx.nn.Linear(WIDTH, 2 * WIDTH, key=keys[1])
        self.dense2 = eqx.nn.Linear(2 * WIDTH, WIDTH, key=keys[2])

    def __call__(self, tokens, state, key=None):
        def logits(token):
            x = self.embed(token)
            return self.embed.weight @ (x + self.dense2(jax.nn.gelu(self.dense1(x))))

        return jax.vmap(logits)(tokens), state


MODULES = {
    "mlp": MLP,
    "transformer": Transformer,
    "resnet": ResNet,
    "lstm": LSTM,
    "vae": VAE,
    "tied": Tied,
}


def make(recipe, options, common):
    """The module and its state."""
    model, state = eqx.nn.make_with_state(MODULES[recipe.name])(options, jax.random.key(0))
    tree = own(common)
    params = tree["params"]
    model = eqx.tree_at(
        lambda model: [at(model, path) for path in params], model, [*params.values()]
    )
    for path, statistics in tree["statistics"].items():
        state = state.set(at(model, path).batch_state_index, statistics)
    return model, state


def at(model, path):
    """What is at ``blocks_0/conv1/weight`` in a module."""
    for name in path.split("/"):
        if name.startswith("blocks_"):
            model = model.blocks[int(name.removeprefix("blocks_"))]
        else:
            model = getattr(model, name)
    return model


def own(common):
    """The common tree in this framework's layout, with paths as keys."""
    params, statistics = {}, {}
    _collect(params, statistics, common["params"], common["statistics"], "")
    return {"params": params, "statistics": statistics}


def _collect(params, statistics, tree, means, path):
    for name, value in tree.items():
        inside = f"{path}{name}"
        if name == "positions":
            params[inside] = value
        elif name == "lstm":
            params[f"{inside}/weight_ih"] = value["input"]["kernel"].T
            params[f"{inside}/weight_hh"] = value["hidden"]["kernel"].T
            params[f"{inside}/bias"] = value["hidden"]["bias"]
        elif {"scale", "kernel", "embedding"} & {*value}:
            for leaf, array in value.items():
                key = "bias" if leaf == "bias" else "weight"
                params[f"{inside}/{key}"] = _form(name, leaf, array)
            if name in means:
                statistics[inside] = (means[name]["mean"], means[name]["var"])
        else:
            _collect(params, statistics, value, means.get(name, {}), f"{inside}/")


def _form(name, leaf, array):
    if leaf == "kernel" and name.startswith("conv"):
        return array.transpose(3, 2, 0, 1)
    if name in ("query", "key", "value"):
        array = array.reshape(*array.shape[:-2], -1)
    if name == "out" and leaf == "kernel":
        array = array.reshape(-1, array.shape[-1])
    return array.T if leaf == "kernel" else array


def beginning(start):
    """The start as a training of no steps returns it."""
    model, state = start
    return model, state, None


def arrays(trained):
    """Parameters and statistics of what a training returns."""
    model, state, _ = trained
    params, statistics = {}, {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(model, is_leaf=_is_norm):
        name = jax.tree_util.keystr(path, simple=True, separator="/").replace("blocks/", "blocks_")
        if _is_norm(leaf):
            statistics[name] = state.get(leaf.batch_state_index)
            params |= {f"{name}/weight": leaf.weight, f"{name}/bias": leaf.bias}
        elif eqx.is_inexact_array(leaf):
            params[name] = leaf
    return {"params": params, "statistics": statistics}


def _is_norm(leaf):
    return isinstance(leaf, eqx.nn.BatchNorm)


def forward(model, x, state, key):
    over = {"axis_name": "batch", "in_axes": (0, None, 0), "out_axes": (0, None)}
    return jax.vmap(model, **over)(x, state, jax.random.split(key, len(x)))


def train(start, loss, tx, batches, forward=forward):
    model, state = start
    opt_state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state, opt_state, batch):
        def loss_fn(model):
            outputs, new = forward(model, batch["x"], state, batch["key"])
            return loss(outputs, batch), new

        (value, new), grads = eqx.filter_value_and_grad(loss_fn, has_aux=True)(model)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, opt_state = tx.update(grads, opt_state, params)
        return eqx.apply_updates(model, updates), new, opt_state, value

    losses = []
    for batch in batches:
        model, state, opt_state, value = step(model, state, opt_state, batch)
        losses.append(value)
    return losses, (model, state, opt_state)


def initialize(start, level):
    model, state = start
    return amp.initialize(model, opt_level=level), state


def train_amp(start, loss, tx, batches, level, **options):
    model, state = start
    model, tx = amp.initialize(model, tx, level, **options)
    opt_state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state, opt_state, batch):
        def loss_fn(model):
            outputs, new = forward(model, batch["x"], state, batch["key"])
            return loss(outputs, batch), new

        (value, new), grads = amp.value_and_grad(loss_fn, opt_state, has_aux=True)(model)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, opt_state = tx.update(grads, opt_state, params)
        new = amp.where_finite(grads, new, state)
        return eqx.apply_updates(model, updates), new, opt_state, value

    losses = []
    for batch in batches:
        model, state, opt_state, value = step(model, state, opt_state, batch)
        losses.append(value)
    return losses, (model, state, opt_state)


def train_in_one_call(start, loss, tx, batches, level, **options):
    model, state = start
    model, tx = amp.initialize(model, tx, level, **options)
    opt_state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    def loss_fn(variables, batch):
        model, state = variables["params"], variables["state"]
        outputs, new = forward(model, batch["x"], state, batch["key"])
        return loss(outputs, batch), {"state": new}

    step = amp.train_step(loss_fn, tx)
    variables, losses = {"params": model, "state": state}, []
    for batch in batches:
        variables, opt_state, value = step(variables, opt_state, batch)
        losses.append(value)
    return losses, (variables["params"], variables["state"], opt_state)


def fold(start, loss, batch, rate):
    model, state = start
    result = jinit.calibrate(
        model,
        forward,
        (batch["x"], state, batch["key"]),
        lambda outputs: loss(outputs, batch),
        optimizer="sgd",
        has_aux=True,
    )
    tx = optax.chain(optax.trace(0.9), result.transform(), optax.scale_by_learning_rate(rate))
    return (result.params, state), tx


def explicit(start, loss, batch):
    model, state = start
    result = jinit.calibrate(
        model,
        forward,
        (batch["x"], state, batch["key"]),
        lambda outputs: loss(outputs, batch),
        optimizer="sgd",
        mode="explicit",
        has_aux=True,
    )
    return (result.params, state), {"forward": result.apply_fn}


def decode(start, tokens, at):
    """The logits of the tokens, one after the other through the cache, and all at once."""
    model, state = start
    model = at(model)
    empty = jnp.zeros((len(tokens), LENGTH, HEADS, WIDTH // HEADS))
    caches = [(empty, empty)] * BLOCKS

    @eqx.filter_jit
    def step(model, token, caches, place):
        def one(token, caches):
            return model(token, state, None, caches, place)

        return jax.vmap(one)(token, caches)

    logits = []
    for place in range(LENGTH):
        one, caches = step(model, tokens[:, place : place + 1], caches, jnp.int32(place))
        logits.append(one)
    full = eqx.filter_jit(lambda model: jax.vmap(lambda tokens: model(tokens, state)[0])(tokens))
    return jnp.concatenate(logits, 1), full(model)
