"""The gradients and parameters of a half training step, as optax transformations.

``scaled_gradients`` leads from a loss to its true gradients, ``scale_schedule`` from one scale to
the next, and ``loss_scaling`` wraps an optimizer so that it does both; ``state_dict`` reads and
sets its scales. ``master_weights`` and ``stochastic_rounding`` step parameters that are stored in
half.
"""
