"""Which dtype every operation of a function computes in.

``op_lists`` is the data, ``regions`` are what users mark. ``weak_operands`` says which operands
vote where dtypes meet, and ``autocast_rule`` decides by all three. ``norms`` finds the norms of a
half function, and ``norm_rule`` runs them in float32; ``constants`` and ``ranges`` keep what a half
dtype does not hold, and ``linen_casts`` casts what modules of one linen model hand to each other.
"""
