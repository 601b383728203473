"""Mixed precision for any JAX function, by the levels of NVIDIA apex, and loss scaling for optax.

``initialize`` gives a function and its optimizer the precision of a level; ``scale_loss`` scales
the loss of a training step; ``loss_scaling`` is the optax transformation alone.
"""

from jinit.amp.autocast import autocast
from jinit.amp.frontend import initialize
from jinit.amp.policy import Policy
from jinit.amp.scaler import LossScalingState, loss_scaling, scale_loss

__all__ = [
    "LossScalingState",
    "Policy",
    "autocast",
    "initialize",
    "loss_scaling",
    "scale_loss",
]
