"""placeholder"""
from dataclasses import dataclass
import jax
@dataclass(frozen=True)
class Rolled:
    traced: object
    groups: tuple
    loops: frozenset = frozenset()
    def stack(self, leaves):
        return [leaves[g[0]] if len(g)==1 else jax.numpy.stack([leaves[i] for i in g]) for g in self.groups]
    def unstack(self, values):
        out=[None]*sum(map(len,self.groups))
        for g,v in zip(self.groups, values):
            for k,i in enumerate(g): out[i]= v if len(g)==1 else v[k]
        return out
def roll(traced, num_variables, trainable):
    return Rolled(traced, tuple((i,) for i in range(num_variables)))
