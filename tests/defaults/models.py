"""Models, each written once, whose layers are given the fields of the argument ``given``."""

import flax.linen as nn


class Compact(nn.Module):
    given: dict

    @nn.compact
    def __call__(self, x):
        return nn.Dense(6, **self.given)(nn.relu(nn.Dense(6, **self.given)(x)))


class Setup(nn.Module):
    given: dict

    def setup(self):
        self.layers = [nn.Dense(6, **self.given), nn.Dense(6, **self.given)]
        self.heads = {"a": nn.Dense(6, **self.given)}

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.heads["a"](x)


class Nested(nn.Module):
    given: dict

    @nn.compact
    def __call__(self, x):
        return Compact(self.given)(Setup(self.given)(x))


class OwnParameter(nn.Module):
    given: dict

    @nn.compact
    def __call__(self, x):
        w = self.param("w", nn.initializers.lecun_normal(), (x.shape[-1], 6))
        return nn.Dense(6, **self.given)(x @ w)


class Scanned(nn.Module):
    given: dict

    @nn.compact
    def __call__(self, x):
        scan = nn.scan(
            lambda m, x, _: (nn.Dense(6, name="layer", **self.given)(x), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
        )
        return scan(self, x, None)[0]


class Mapped(nn.Module):
    given: dict

    @nn.compact
    def __call__(self, x):
        dense = nn.vmap(
            nn.Dense,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=None,
            axis_size=4,
        )
        return dense(6, **self.given)(x)


class Conditional(nn.Module):
    given: dict

    @nn.compact
    def __call__(self, x):
        def layer(module, x):
            return nn.Dense(6, name="a", **self.given)(x)

        x = layer(self, x) if self.is_initializing() else x
        return nn.cond(x.sum() > 0, layer, lambda m, x: -layer(m, x), self, x)


class Switched(nn.Module):
    given: dict

    @nn.compact
    def __call__(self, x):
        layers = [nn.Dense(6, **self.given), nn.Dense(6, **self.given)]
        branches = [lambda m, x, i=i: layers[i](x) for i in range(2)]
        if self.is_initializing():
            for branch in branches:
                branch(self, x)
        return nn.switch(1, branches, self, x)


class Looped(nn.Module):
    given: dict

    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(6, **self.given)
        if self.is_initializing():
            return layer(x)
        return nn.while_loop(lambda m, c: c.sum() < 10, lambda m, c: layer(c) ** 2 + 1, self, x)


class Shared(nn.Module):
    given: dict

    def setup(self):
        self.inner = nn.Dense(6, **self.given)
        nn.share_scope(self, self.inner)

    def __call__(self, x):
        return self.inner(x)


class Scopes(nn.Module):
    given: dict

    @nn.compact
    def __call__(self, x):
        return self.up(self.up(x))

    @nn.compact_name_scope
    def up(self, x):
        return nn.Dense(6, **self.given)(x)


class Tied(nn.Module):
    given: dict

    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(6, **self.given)
        return layer(layer(x))


class OtherMethod(nn.Module):
    given: dict

    def setup(self):
        self.layer = nn.Dense(6, **self.given)

    def __call__(self, x):
        return self.encode(x)

    def encode(self, x):
        return self.layer(x)


class KeywordOnly(nn.Module, kw_only=True):
    given: dict
    width: int = 6

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.width, **self.given)(x)


class Subclass(nn.Dense):
    pass


class Calls(nn.Dense):
    @nn.compact
    def __call__(self, x, scale):
        return scale * super().__call__(x)


class CallsSubclass(nn.Module):
    given: dict

    @nn.compact
    def __call__(self, x):
        return Calls(6, **self.given)(x, 2.0)


MODELS = {
    "compact": Compact,
    "setup, list and dict": Setup,
    "nested": Nested,
    "own parameter": OwnParameter,
    "scan": Scanned,
    "vmap": Mapped,
    "cond": Conditional,
    "switch": Switched,
    "while_loop": Looped,
    "share_scope": Shared,
    "compact_name_scope": Scopes,
    "layer used twice": Tied,
    "kw_only": lambda given: KeywordOnly(given=given),
    "Sequential": lambda given: nn.Sequential(
        [nn.Dense(6, **given), nn.relu, nn.Dense(6, **given)]
    ),
    "subclass": lambda given: Subclass(6, **given),
    "subclass with its own call": CallsSubclass,
    "remat": lambda given: nn.remat(Compact)(given),
    "nn.jit of a layer": lambda given: nn.jit(nn.Dense)(6, **given),
    "nn.jit of a model": lambda given: nn.jit(OtherMethod)(nn.FrozenDict(given)),
    "weight norm": lambda given: nn.Sequential([nn.WeightNorm(nn.Dense(6, **given))]),
    "attention": lambda given: nn.MultiHeadAttention(num_heads=2, **given),
    "DenseGeneral": lambda given: nn.DenseGeneral((2, 3), axis=(0, 1), **given),
}
