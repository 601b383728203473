"""Mixed precision for any JAX function, by the levels of NVIDIA apex, and loss scaling for optax.

``initialize`` gives a function and its optimizer the precision of a level; ``scale_loss`` scales
the loss of a training step; ``loss_scaling`` is the optax transformation alone.
"""

from jinit.amp.autocast import Autocast, autocast
from jinit.amp.explain import ExplainedOp, Explanation, explain
from jinit.amp.frontend import initialize
from jinit.amp.op_lists import OPS, OpLists
from jinit.amp.policy import Policy
from jinit.amp.regions import disable_casts, float_function, half_function, promote_function
from jinit.amp.scaler import LossScalingState, loss_scaling, scale_loss

__all__ = [
    "OPS",
    "Autocast",
    "ExplainedOp",
    "Explanation",
    "LossScalingState",
    "OpLists",
    "Policy",
    "autocast",
    "disable_casts",
    "explain",
    "float_function",
    "half_function",
    "initialize",
    "loss_scaling",
    "promote_function",
    "scale_loss",
]
