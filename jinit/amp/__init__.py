"""Mixed precision for any JAX function, by the levels of NVIDIA apex, and loss scaling for optax.

``initialize`` gives a function and its optimizer the precision of a level; ``scale_loss`` scales
the loss of a training step, and ``value_and_grad`` differentiates it at its scale;
``loss_scaling`` is the optax transformation alone.
"""

from jinit import _known
from jinit.amp.autocast import autocast
from jinit.amp.autocast_function import Autocast
from jinit.amp.casting.op_lists import OPS, OpLists
from jinit.amp.casting.regions import disable_casts, float_function, half_function, promote_function
from jinit.amp.explain import ExplainedOp, Explanation, explain
from jinit.amp.initialize import initialize
from jinit.amp.policy import Policy
from jinit.amp.scaling.finite_state import where_finite
from jinit.amp.scaling.loss_scaling import LossScalingState, loss_scaling
from jinit.amp.scaling.master_weights import MasterWeightsState, master_weights
from jinit.amp.scaling.scaled_gradients import UnscaledGrads, scale_loss, unscale, value_and_grad
from jinit.amp.scaling.state_dict import load_state_dict, state_dict
from jinit.amp.scaling.stochastic_rounding import StochasticRoundingState, stochastic_rounding
from jinit.amp.train_step import train_step

__all__ = [
    "OPS",
    "Autocast",
    "ExplainedOp",
    "Explanation",
    "LossScalingState",
    "MasterWeightsState",
    "OpLists",
    "Policy",
    "StochasticRoundingState",
    "UnscaledGrads",
    "autocast",
    "disable_casts",
    "explain",
    "float_function",
    "half_function",
    "initialize",
    "load_state_dict",
    "loss_scaling",
    "master_weights",
    "promote_function",
    "scale_loss",
    "state_dict",
    "stochastic_rounding",
    "train_step",
    "unscale",
    "value_and_grad",
    "where_finite",
]

__getattr__ = _known.known_names(__name__, __all__)
