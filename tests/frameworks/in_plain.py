"""The models as functions of ``{"params": ..., "statistics": ...}`` and of inputs."""

import functools

import jax
import jax.numpy as jnp
import optax

import jinit
from jinit import amp
from tests.frameworks.recipes import BLOCKS, EPSILON, HEADS, HIDDEN, LENGTH, MOMENTUM, WIDTH

NAME = "plain"


def dense(params, x):
    y = x @ params["kernel"]
    return y + params["bias"] if "bias" in params else y


def conv(params, x):
    kernel = params["kernel"]
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def batch_norm(params, statistics, x):
    axes = tuple(range(x.ndim - 1))
    mean, var = x.mean(axes), x.var(axes)
    y = (x - mean) * (jax.lax.rsqrt(var + EPSILON) * params["scale"]) + params["bias"]
    moved = {
        name: MOMENTUM * statistics[name] + (1 - MOMENTUM) * new
        for name, new in {"mean": mean, "var": var}.items()
    }
    return y, moved


def layer_norm(params, x):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) * (jax.lax.rsqrt(var + EPSILON) * params["scale"]) + params["bias"]


def dropout(rate, key, x):
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0) if rate else x


def mlp(options, variables, x, key):
    params, statistics = variables["params"], variables["statistics"]
    moved = {}
    for number, mask in zip("12", jax.random.split(key), strict=True):
        norm = f"norm{number}"
        x = dense(params[f"dense{number}"], x)
        x, moved[norm] = batch_norm(params[norm], statistics[norm], x)
        x = dropout(options.rate, mask, jax.nn.relu(x))
    return dense(params["head"], x), {"statistics": moved}


def attention(params, x, cache, place):
    """Attends to what is before; with a cache, to what it holds, and x is one token."""
    query, key, value = (
        jnp.einsum("btd,dhk->bthk", x, params[name]["kernel"]) + params[name]["bias"]
        for name in ("query", "key", "value")
    )
    if cache is not None:
        key = cache["key"].at[:, place].set(key[:, 0])
        value = cache["value"].at[:, place].set(value[:, 0])
        cache = {"key": key, "value": value}
    places = place + jnp.arange(x.shape[1])
    seen = places[:, None] >= jnp.arange(key.shape[1])[None]
    scores = jnp.einsum("bthk,bshk->bhts", query / (WIDTH // HEADS) ** 0.5, key)
    weights = jax.nn.softmax(jnp.where(seen, scores, jnp.finfo(scores.dtype).min))
    mixed = jnp.einsum("bhts,bshk->bthk", weights, value)
    out = params["out"]
    return jnp.einsum("bthk,hkd->btd", mixed, out["kernel"]) + out["bias"], cache


def transformer(options, variables, tokens, key=None, place=0):
    params, caches = variables["params"], variables.get("cache", {})
    places = place + jnp.arange(tokens.shape[1])
    x = params["embed"]["embedding"][tokens] + params["positions"][places]
    moved = {}
    for name in (f"blocks_{number}" for number in range(BLOCKS)):
        block, cache = params[name], caches.get(name)
        y, cache = attention(block["attention"], layer_norm(block["norm1"], x), cache, place)
        x = x + y
        y = jax.nn.gelu(dense(block["dense1"], layer_norm(block["norm2"], x)))
        x = x + dense(block["dense2"], y)
        moved[name] = cache
    logits = dense(params["head"], layer_norm(params["norm"], x))
    return logits, {"cache": moved} if caches else {}


def resnet(options, variables, x, key):
    params, statistics = variables["params"], variables["statistics"]
    moved = {}
    x = conv(params["conv"], x)
    x, moved["norm"] = batch_norm(params["norm"], statistics["norm"], x)
    x = jax.nn.relu(x)
    for name in (f"blocks_{number}" for number in range(BLOCKS)):
        block, old, new = params[name], statistics[name], {}
        y = conv(block["conv1"], x)
        y, new["norm1"] = batch_norm(block["norm1"], old["norm1"], y)
        y = conv(block["conv2"], jax.nn.relu(y))
        y, new["norm2"] = batch_norm(block["norm2"], old["norm2"], y)
        x, moved[name] = jax.nn.relu(x + y), new
    return dense(params["head"], x.mean((1, 2))), {"statistics": moved}


def lstm(options, variables, x, key):
    params = variables["params"]

    def cell(carry, x):
        h, c = carry
        gates = dense(params["lstm"]["input"], x) + dense(params["lstm"]["hidden"], h)
        i, f, g, o = jnp.split(gates, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    start = jnp.zeros((len(x), HIDDEN), x.dtype)
    (last, _), _ = jax.lax.scan(cell, (start, start), x.swapaxes(0, 1))
    return dense(params["head"], last), {}


def vae(options, variables, x, key):
    params = variables["params"]
    h = jax.nn.relu(dense(params["encoder"], x))
    mean, variance = dense(params["mean"], h), dense(params["variance"], h)
    z = mean + jnp.exp(variance / 2) * options.draw(key, mean.shape)
    h = jax.nn.relu(dense(params["decoder"], z))
    return (dense(params["head"], h), mean, variance), {}


def tied(options, variables, tokens, key):
    params = variables["params"]
    table = params["embed"]["embedding"]
    x = table[tokens]
    x = x + dense(params["dense2"], jax.nn.gelu(dense(params["dense1"], x)))
    return x @ table.T, {}


FUNCTIONS = {
    function.__name__: function for function in (mlp, transformer, resnet, lstm, vae, tied)
}


def make(recipe, options, common):
    """The function of variables, and the variables."""
    statistics = {"statistics": common["statistics"]} if common["statistics"] else {}
    variables = {"params": common["params"], **statistics}
    return functools.partial(FUNCTIONS[recipe.name], options), variables


def own(common):
    """The common tree in this framework's layout."""
    return common


def beginning(start):
    """The start as a training of no steps returns it."""
    _, variables = start
    return variables, None


def arrays(trained):
    """Parameters and statistics of what a training returns."""
    variables, _ = trained
    return {"statistics": variables.get("statistics", {}), "params": variables["params"]}


def train(start, loss, tx, batches):
    model, variables = start
    opt_state = tx.init(variables["params"])

    @jax.jit
    def step(variables, opt_state, batch):
        def loss_fn(params):
            outputs, new = model({**variables, "params": params}, batch["x"], batch["key"])
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
            outputs, new = model({**variables, "params": params}, batch["x"], batch["key"])
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
        outputs, new = model(variables, batch["x"], batch["key"])
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
        (batch["x"], batch["key"]),
        lambda outputs: loss(outputs, batch),
        optimizer="sgd",
        has_aux=True,
    )
    tx = optax.chain(optax.trace(0.9), result.transform(), optax.scale_by_learning_rate(rate))
    return (model, result.params), tx


def explicit(start, loss, batch):
    model, variables = start
    result = jinit.calibrate(
        variables,
        model,
        (batch["x"], batch["key"]),
        lambda outputs: loss(outputs, batch),
        optimizer="sgd",
        mode="explicit",
        has_aux=True,
    )
    return (result.apply_fn, result.params), {}


def decode(start, tokens, at):
    """The logits of the tokens, one after the other through the cache, and all at once."""
    model, variables = start
    model = at(model)
    empty = jnp.zeros((len(tokens), LENGTH, HEADS, WIDTH // HEADS))
    state = {"cache": {f"blocks_{n}": {"key": empty, "value": empty} for n in range(BLOCKS)}}
    step = jax.jit(lambda state, token, place: model({**variables, **state}, token, None, place))
    logits = []
    for place in range(LENGTH):
        one, state = step(state, tokens[:, place : place + 1], place)
        logits.append(one)
    return jnp.concatenate(logits, 1), jax.jit(model)(variables, tokens)[0]
