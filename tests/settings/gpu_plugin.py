"""The plugin of a GPU, as JAX finds, registers and starts it; what it computes on is the CPU.

Tests copy it to ``jax_plugins/NAME.py``, whose name says which platform it is of.
"""

import functools

import jax
from jax._src import xla_bridge
from jaxlib import xla_client

PLATFORM = __name__.rpartition(".")[2].removeprefix("xla_").rstrip("0123456789")
READ = []
"""What it has read when it was registered, once for each time that it was."""


def initialize():
    if PLATFORM == "rocm":
        raise ValueError("No AMD GPUs were found")  # as that of ROCm does
    options = xla_client.generate_pjrt_gpu_plugin_options()
    READ.append({**options, "jax_platforms": jax.config.jax_platforms})
    factory = functools.partial(_make_client, options=options)
    xla_bridge.register_backend_factory(PLATFORM, factory, priority=-1)


def _make_client(options):
    return xla_bridge.make_cpu_client()
