"""The main job: a network trained on handwritten digits through the whole library.

``python -m jinit demo`` starts the process, initializes a Flax model with Keras's defaults,
calibrates it, trains it at every level of precision, and shows what happened.
"""

from jinit.demo.command import main

__all__ = ["main"]
