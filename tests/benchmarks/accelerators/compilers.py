"""XLA's compilers for GPUs and TPUs, on a machine that has neither: a topology stands for devices.

What they make cannot be run, and a time means nothing; memory and the optimized program are those
of the real thing. Without a device the GPU's compiler asks neither cuBLAS nor cuDNN what is fast:
products are Triton's, convolutions are calls whose scratch it does not know.
"""

import functools
import importlib
import importlib.util
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["COMPILERS", "is_installed", "mesh_of", "prepare_environment"]

COMPILERS = {"gpu": "jax_plugins.xla_cuda12", "tpu": "libtpu"}
"""The package that holds each compiler; the extra ``accelerators`` installs both."""

_TPU: Mapping[str, str] = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # a process elsewhere may be compiling too
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
_H100 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
runtime_version { major: 12 minor: 9 }
dnn_version_info { major: 9 minor: 8 }
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000
  device_memory_size: 84978434048
  l2_cache_size: 52428800
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_core_limit: 2048
  threads_per_block_limit: 1024
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
"""
_SHAPES = {1: (1, 1), 8: (4, 2)}


def prepare_environment() -> None:
    """Sets what the compilers read when they are first asked for; JAX itself stays on the CPU."""
    os.environ.update(_TPU, JAX_PLATFORMS="cpu")


def is_installed(compiler: str) -> bool:
    """Returns whether the package with a compiler can be found."""
    try:
        return importlib.util.find_spec(COMPILERS[compiler]) is not None
    except ModuleNotFoundError:
        return False


@functools.cache
def mesh_of(compiler: str, count: int) -> Any:
    """Returns a mesh of one or eight devices that a compiler compiles for.

    Args:
        compiler: ``gpu``, an H100, or ``tpu``, a v5e.
        count: 1 or 8; its axes are ``data`` and ``model``.
    """
    from jax.sharding import Mesh

    devices = (_gpus if compiler == "gpu" else _tpus)(count)
    return Mesh(np.array(devices).reshape(_SHAPES[count]), ("data", "model"))


def _gpus(count: int) -> Any:
    from jax.experimental import topologies

    return topologies.get_topology_desc(
        "h100", "cuda", target_config=_H100, topology=f"1x1x{count}"
    ).devices


def _tpus(count: int) -> Any:
    from jax.experimental import topologies

    shape, host = ("v5e:1x1", (1, 1, 1)) if count == 1 else ("v5e:2x4", (2, 2, 1))
    return topologies.get_topology_desc(shape, "tpu", chips_per_host_bounds=host).devices
