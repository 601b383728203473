"""Mixed precision for any JAX function, by the levels of NVIDIA apex, and loss scaling for optax.

``initialize`` gives a function and its optimizer the precision of a level; ``scale_loss`` scales
the loss of a training step, and ``value_and_grad`` differentiates it at its scale;
``loss_scaling`` is the optax transformation alone.
"""

from jinit.amp.autocast import autocast
from jinit.amp.frontend import initialize
from jinit.amp.gradients import UnscaledGrads, scale_loss, unscale, value_and_grad
from jinit.amp.policy import Policy
from jinit.amp.scaler import LossScalingState, loss_scaling
from jinit.amp.state_dict import load_state_dict, state_dict

__all__ = [
    "LossScalingState",
    "Policy",
    "UnscaledGrads",
    "autocast",
    "initialize",
    "load_state_dict",
    "loss_scaling",
    "scale_loss",
    "state_dict",
    "unscale",
    "value_and_grad",
]
