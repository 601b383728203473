"""Rolling: equal blocks of a traced function become one loop.

``flat`` numbers the values of a program, ``fingerprint`` says which equations do the same,
``schedule`` which of them run in order, ``repeats`` where that order repeats itself, ``matching``
whether one ``loop`` can compute what repeats, and ``roll`` runs the program with its loops.
"""

from jinit.tracing.rolling.roll import Rolled, roll

__all__ = ["Rolled", "roll"]
