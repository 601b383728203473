"""Models of the zoo that are plain functions, and those of Equinox, Haiku and NNX."""

import functools
from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from tests.empirical.models import tanh_params
from tests.empirical.zoo import BIAS, GAIN, MIXED, OPAQUE, Case, Outputs, case, fill, normal, plain

WIDTH = 32


def weights(seed: int, *shape: int, size: float = 0.3) -> jax.Array:
    return size * jax.random.normal(jax.random.key(seed), shape)


def hand_out(path: str, outputs: Outputs, y: jax.Array) -> jax.Array:
    """Records what a layer produced, and returns it."""
    outputs.setdefault(path, []).append(y)
    return y


@case("plain_tanh")
def plain_tanh() -> Case:
    def net(params, x):
        outputs: Outputs = {}
        for i, layer in enumerate(params):
            x = x if i == 0 else jnp.tanh(x)
            x = hand_out(f"{i}/w", outputs, x @ layer["w"] + layer["b"])
        return x, outputs

    return Case(params=tanh_params(8, WIDTH), draw=normal(64, WIDTH), **plain(net))


@case("several_inputs_and_einsum")
def bilinear() -> Case:
    """Attention by hand, with what a library would not write: einsums, two inputs, no bias."""

    def net(params, x, memory):
        outputs: Outputs = {}
        keep = functools.partial(hand_out, outputs=outputs)
        q = keep("q", y=jnp.einsum("btd,dhk->bthk", x, params["q"]))
        k = keep("k", y=jnp.einsum("bsd,dhk->bshk", memory, params["k"]))
        v = keep("v", y=jnp.einsum("bsd,dhk->bshk", memory, params["v"]))
        mixed = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k) / 4)
        heads = jnp.einsum("bhts,bshk->bthk", mixed, v)
        return keep("o", y=jnp.einsum("bthk,hkd->btd", heads, params["o"])), outputs

    params = {name: weights(i, WIDTH, 2, 16) for i, name in enumerate("qkv")}
    params["o"] = weights(3, 2, 16, WIDTH)
    return Case(
        params=params,
        draw=lambda key: (
            normal(8, 6, WIDTH)(key),
            normal(8, 5, WIDTH)(jax.random.fold_in(key, 1)),
        ),
        **plain(net),
    )


# -- loops ------------------------------------------------------------------------------------


@case("scan_over_layers_with_remat")
def scanned_layers() -> Case:
    def net(params, x):
        def body(x, layer):
            y = x @ layer["w"] + layer["b"]
            return jnp.tanh(y), y

        x, ys = jax.lax.scan(jax.checkpoint(body), x, params)
        return x, {"w": [ys]}

    params = {"w": weights(0, 12, WIDTH, WIDTH), "b": weights(1, 12, WIDTH)}
    return Case(params=params, draw=normal(64, WIDTH), scans={"w": 1}, own={"w": 1}, **plain(net))


def _cell(layer: Any, h: jax.Array, x: jax.Array) -> tuple[jax.Array, Outputs]:
    outputs: Outputs = {}
    y = hand_out("i", outputs, x @ layer["i"] + layer["b"]) + hand_out("h", outputs, h @ layer["h"])
    return jnp.tanh(y), outputs


def _recurrent_layers(layers: int) -> dict[str, jax.Array]:
    return {
        "i": weights(0, layers, WIDTH, WIDTH),
        "h": weights(1, layers, WIDTH, WIDTH),
        "b": weights(2, layers, WIDTH),
    }


def _nested(net: Any, own: int, first_step: str) -> Case:
    return Case(
        params=_recurrent_layers(3),
        draw=normal(6, 16, WIDTH),
        scans={"[ih]": 2},
        own={"[ih]": own},
        shared=("[ih]",),
        perhaps_null=(first_step,),
        **plain(net),
    )


@case("scan_over_layers_then_time")
def layers_then_time() -> Case:
    def net(params, x):
        def one_layer(x, layer):
            def step(h, xt):
                h, outputs = _cell(layer, h, xt)
                return h, (h, outputs)

            return jax.lax.scan(step, jnp.zeros_like(x[0]), x)[1]

        return jax.lax.scan(one_layer, x, params)

    return _nested(net, 1, r"h\[\d\]\[0\]")


@case("scan_over_time_then_layers")
def time_then_layers() -> Case:
    """The loops the other way about; what is handed out has the layers first again."""

    def net(params, x):
        def step(state, xt):
            def one_layer(xt, at):
                layer, h = at
                h, outputs = _cell(layer, h, xt)
                return h, (h, outputs)

            top, (state, outputs) = jax.lax.scan(one_layer, xt, (params, state))
            return state, (top, outputs)

        _, (tops, outputs) = jax.lax.scan(step, jnp.zeros((3, *x.shape[1:])), x)
        return tops, jax.tree.map(lambda y: jnp.swapaxes(y, 0, 1), outputs)

    return _nested(net, -1, r"h\[0\]\[\d\]")


@case("fused_recurrence")
def fused_recurrence() -> Case:
    """An LSTM as its optimized forms compute it: the gates' kernels are joined first."""
    gates = "fgio"

    def net(params, x):
        i = jnp.concatenate([params[f"i{gate}"] for gate in gates], 1)
        h = jnp.concatenate([params[f"h{gate}"] for gate in gates], 1)

        def step(state, xt):
            outputs: Outputs = {}
            cell, hidden = state
            y = hand_out("if", outputs, xt @ i) + hand_out("hf", outputs, hidden @ h)
            forget, new, write, out = jnp.split(y, 4, 1)
            cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(write) * jnp.tanh(new)
            hidden = jax.nn.sigmoid(out) * jnp.tanh(cell)
            return (cell, hidden), (hidden, outputs)

        start = (jnp.zeros((x.shape[1], WIDTH)),) * 2
        return jax.lax.scan(step, start, x)[1]

    kernels = {f"{a}{b}": weights(i, WIDTH, WIDTH) for i, (a, b) in enumerate(_pairs("hi", gates))}
    return Case(
        params=kernels,
        draw=normal(6, 16, WIDTH),
        scans={"[hi]f": 1},
        shared=("[hi][fgio]",),
        perhaps_null=(r"hf\[0\]",),
        **plain(net),
    )


def _pairs(first: str, second: str) -> list[tuple[str, str]]:
    return [(a, b) for a in first for b in second]


@case("fori_loop")
def fori_loop() -> Case:
    """A loop of known length, which JAX writes as a scan: its weight serves every iteration."""

    def net(params, x):
        def body(i, state):
            x, ys = state
            y = x @ params["w"]
            return jnp.tanh(y), ys.at[i].set(y)

        x, ys = jax.lax.fori_loop(0, 5, body, (x, jnp.zeros((5, *x.shape))))
        out = x @ params["head"]
        return out, {"w": [ys], "head": [out]}

    params = {"w": weights(0, WIDTH, WIDTH), "head": weights(1, WIDTH, 4)}
    return Case(params=params, draw=normal(64, WIDTH), scans={"w": 1}, shared=("w",), **plain(net))


@case("while_loop")
def while_loop() -> Case:
    """A loop of unknown length, through which JAX takes no gradient: its result is held."""

    def net(params, x):
        y = x @ params["outer"]

        inner = jax.lax.stop_gradient(params["inner"])

        def body(state):
            i, x, _ = state
            z = x @ inner
            return i + 1, jnp.tanh(z), z

        zeros = jnp.zeros_like(y)
        _, settled, z = jax.lax.while_loop(
            lambda state: state[0] < 2, body, (0, jax.lax.stop_gradient(y), zeros)
        )
        out = (y + settled) @ params["head"]
        return out, {"outer": [y], "head": [out], "inner": [z]}

    params = {name: weights(i, WIDTH, WIDTH) for i, name in enumerate(("outer", "inner", "head"))}
    return Case(
        params=params,
        draw=normal(64, WIDTH),
        perhaps_not_tuned={"inner": OPAQUE},
        perhaps_null=("inner",),
        **plain(net),
    )


# -- control flow and many devices ------------------------------------------------------------


@case("cond_and_switch")
def branches() -> Case:
    def branch(params, place, count):
        """Takes one of several branches, which hands out zeros for the others."""

        def run(x):
            y = (1 + 5 * place) * x @ params[place]
            return y, [y if i == place else jnp.zeros_like(y) for i in range(count)]

        return run

    def net(params, x):
        first = x @ params["first"]
        either = [branch(params["cond"], i, 2) for i in range(2)]
        y, pair = jax.lax.cond(x[0, 0] > 0, *either, jax.nn.relu(first))
        one_of = [branch(params["switch"], i, 3) for i in range(3)]
        chosen = jnp.clip(jnp.int32(1.5 * x[0, 1] + 1.5), 0, 2)
        y, three = jax.lax.switch(chosen, one_of, jax.nn.relu(y))
        outputs = {f"cond/{i}": [y] for i, y in enumerate(pair)}
        outputs |= {f"switch/{i}": [y] for i, y in enumerate(three)}
        return y, {"first": [first], **outputs}

    params = {
        "first": weights(0, WIDTH, WIDTH),
        "cond": [weights(i, WIDTH, WIDTH) for i in (1, 2)],
        "switch": [weights(i, WIDTH, WIDTH) for i in (3, 4, 5)],
    }
    return Case(params=params, draw=normal(64, WIDTH), options={"samples": 16}, **plain(net))


@case("shard_map")
def shard_map() -> Case:
    mesh = Mesh(np.array(jax.devices()), ("d",))

    def net(params, x):
        outputs: Outputs = {}
        x = jnp.tanh(hand_out("before", outputs, x @ params["before"]))
        inside = functools.partial(
            jax.shard_map, mesh=mesh, in_specs=(P(), P("d")), out_specs=P("d")
        )
        y = inside(lambda w, x: x @ w)(params["inside"], x)
        y = jnp.tanh(hand_out("inside", outputs, y))
        return hand_out("after", outputs, y @ params["after"]), outputs

    params = {
        name: weights(i, WIDTH, WIDTH) for i, name in enumerate(("before", "inside", "after"))
    }
    return Case(
        params=params,
        draw=normal(64, WIDTH),
        perhaps_not_tuned={"inside": OPAQUE},
        **plain(net),
    )


# -- mixtures of experts ----------------------------------------------------------------------

EXPERTS = 4


def _expert_params() -> dict[str, jax.Array]:
    return {
        "router": weights(0, WIDTH, EXPERTS),
        "up": weights(1, EXPERTS, WIDTH, 2 * WIDTH),
        "down": weights(2, EXPERTS, 2 * WIDTH, WIDTH),
    }


@case("moe_one_hot")
def one_hot_experts() -> Case:
    """Every token goes to one expert, as far as the expert has room."""

    def net(params, x):
        outputs: Outputs = {}
        logits = hand_out("router", outputs, x @ params["router"])
        gates = jax.nn.softmax(logits)
        chosen = jax.nn.one_hot(jnp.argmax(gates, 1), EXPERTS, dtype=jnp.int32)
        place = jnp.cumsum(chosen, 0) * chosen - 1
        slots = jax.nn.one_hot(place, 24)  # tokens, experts, room
        routed = jnp.einsum("td,tec->ecd", x, slots)
        y = hand_out("up", outputs, jnp.einsum("ecd,edf->ecf", routed, params["up"]))
        y = jnp.einsum("ecf,efd->ecd", jax.nn.relu(y), params["down"])
        hand_out("down", outputs, y)
        return x + jnp.einsum("ecd,tec,te->td", y, slots, gates), outputs

    return Case(params=_expert_params(), draw=normal(64, WIDTH), **plain(net))


@case("moe_ragged_dot")
def ragged_experts() -> Case:
    """Tokens are sorted by expert, and each group is multiplied by its own matrix."""

    def net(params, x):
        outputs: Outputs = {}
        logits = hand_out("router", outputs, x @ params["router"])
        gates, chosen = jnp.max(jax.nn.softmax(logits), 1), jnp.argmax(logits, 1)
        order = jnp.argsort(chosen)
        sizes = jnp.bincount(chosen, length=EXPERTS)
        y = hand_out("up", outputs, jax.lax.ragged_dot(x[order], params["up"], sizes))
        y = jax.lax.ragged_dot(jax.nn.relu(y), params["down"], sizes)
        hand_out("down", outputs, y)
        return x + gates[:, None] * y[jnp.argsort(order)], outputs

    return Case(params=_expert_params(), draw=normal(64, WIDTH), **plain(net))


# -- weights that are computed ----------------------------------------------------------------


@case("low_rank_adapter")
def low_rank_adapter() -> Case:
    """W + D U is homogeneous in no one of its leaves."""

    def net(params, x):
        y = x @ (params["w"] + params["down"] @ params["up"])
        out = jnp.tanh(y) @ params["head"]
        return out, {"down": [y], "head": [out]}

    params = {
        "w": weights(0, WIDTH, WIDTH),
        "down": weights(1, WIDTH, 4),
        "up": weights(2, 4, WIDTH),
        "head": weights(3, WIDTH, 4),
    }
    return Case(
        params=params,
        draw=normal(64, WIDTH),
        perhaps_not_tuned={"w|down|up": MIXED},
        **plain(net),
    )


@case("weight_standardization")
def weight_standardization() -> Case:
    """The weight's size cancels, so that no scale of it changes the output."""

    def net(params, x):
        w = params["w"] - params["w"].mean(0)
        w = w / jnp.sqrt(jnp.square(w).mean(0) + 1e-6)
        y = x @ (params["gain"] * w)
        out = jax.nn.relu(y) @ params["head"]
        return out, {"gain": [y], "head": [out]}

    params = {"w": weights(0, WIDTH, WIDTH), "gain": jnp.ones(WIDTH), "head": weights(1, WIDTH, 4)}
    return Case(params=params, draw=normal(64, WIDTH), **plain(net))


@jax.custom_vjp
def clipped(x: jax.Array, w: jax.Array) -> jax.Array:
    """A product whose gradient is clipped: its derivative is the user's own."""
    return x @ w


clipped.defvjp(
    lambda x, w: (x @ w, (x, w)),
    lambda kept, ct: (jnp.clip(ct, -1, 1) @ kept[1].T, kept[0].T @ jnp.clip(ct, -1, 1)),
)


@case("site_with_its_own_derivative")
def own_derivative() -> Case:
    def net(params, x):
        outputs: Outputs = {}
        x = jnp.tanh(hand_out("before", outputs, x @ params["before"]))
        x = jnp.tanh(hand_out("inside", outputs, clipped(x, params["inside"])))
        return hand_out("after", outputs, x @ params["after"]), outputs

    params = {
        name: weights(i, WIDTH, WIDTH) for i, name in enumerate(("before", "inside", "after"))
    }
    return Case(
        params=params,
        draw=normal(64, WIDTH),
        perhaps_not_tuned={"inside": OPAQUE},
        **plain(net),
    )


# -- frameworks -------------------------------------------------------------------------------


@case("equinox")
def equinox_mlp() -> Case:
    model = eqx.nn.MLP(16, 4, WIDTH, 3, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_array)

    def captured(params, x):
        model, outputs = eqx.combine(params, static), {}
        for i, layer in enumerate(model.layers):
            x = x if i == 0 else model.activation(x)
            x = hand_out(f"layers/{i}/weight", outputs, jax.vmap(layer)(x))
        return x, outputs

    def apply(params, x):
        return jax.vmap(eqx.combine(params, static))(x)

    return Case(params=params, captured=captured, apply_fn=apply, draw=normal(64, 16))


@case("haiku")
def haiku_mlp() -> Case:
    def forward(x):
        x = hk.Conv2D(8, 3)(x)
        return hk.nets.MLP([WIDTH, WIDTH, 4])(hk.Flatten()(jax.nn.relu(x)))

    net = hk.without_apply_rng(hk.transform(forward))

    def captured(params, x):
        outputs: Outputs = {}

        def keep(call, args, keywords, context):
            y = call(*args, **keywords)
            layer = isinstance(context.module, hk.Linear | hk.Conv2D)
            named = layer and context.method_name == "__call__"
            return hand_out(f"{context.module.module_name}/w", outputs, y) if named else y

        def intercepted(x):
            with hk.intercept_methods(keep):
                return forward(x)

        return hk.without_apply_rng(hk.transform(intercepted)).apply(params, x), outputs

    draw = normal(32, 6, 6, 2)
    shapes = jax.eval_shape(net.init, jax.random.key(0), jax.eval_shape(draw, jax.random.key(1)))
    return Case(params=fill(shapes), captured=captured, apply_fn=net.apply, draw=draw)


class NnxNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(16, WIDTH, rngs=rngs)
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.second = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 4, rngs=rngs)

    def __call__(self, x):
        return self.run(x)[0]

    def run(self, x):
        outputs: Outputs = {}
        x = hand_out("first/kernel", outputs, self.first(x))
        x = hand_out("second/kernel", outputs, self.second(nnx.relu(self.norm(x))))
        return hand_out("head/kernel", outputs, self.head(nnx.relu(x))), outputs


@case("nnx")
def nnx_net() -> Case:
    graph, state = nnx.split(NnxNet(nnx.Rngs(0)))
    return Case(
        params=state,
        captured=lambda state, x: nnx.merge(graph, state).run(x),
        apply_fn=lambda state, x: nnx.merge(graph, state)(x),
        draw=normal(64, 16),
        not_tuned={"norm/scale": GAIN, "norm/bias": BIAS},
    )
