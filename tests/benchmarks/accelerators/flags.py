"""What ``startup`` says of XLA flags beside what the compilers do under them.

Startup asks a child process that runs on the CPU, whose copy of XLA reads the same flags; a
compiler in a plugin has a copy of its own. The child here compiles a small program with that.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping

from jinit._tables import format_table
from jinit.settings.determinism import DETERMINISTIC_FLAGS
from jinit.settings.flags.check import check_flags, check_tpu_flags
from jinit.settings.flags.text import format_flags
from tests.processes import environment

__all__ = ["compile_something", "tables"]

QUICK = 3
GPU: tuple[Mapping[str, str | None], ...] = (
    DETERMINISTIC_FLAGS,
    {"xla_gpu_no_such_flag": "1"},
    {"xla_gpu_autotune_level": "banana"},
    {"xla_gpu_autotune_level": "0"},
    {"xla_gpu_enable_latency_hiding_scheduler": "true"},
    {"xla_gpu_enable_triton_gemm": "false"},
    {"xla_gpu_all_reduce_combine_threshold_bytes": "134217728"},
    {"xla_gpu_enable_command_buffer": None},
    {"xla_gpu_enable_command_buffer": "zzz"},
    {"xla_gpu_enable_command_buffer": "FUSION"},
    {"xla_gpu_cudnn_gemm_fusion": "true"},
    {"xla_gpu_enable_custom_fusions": "true"},
    {"xla_gpu_graph_level": "0"},
    {"xla_disable_all_hlo_passes": "true"},
    {"xla_backend_extra_options": "abc"},
)
TPU: tuple[Mapping[str, str | None], ...] = (
    {"xla_tpu_scoped_vmem_limit_kib": "65536"},
    {"xla_tpu_no_such_flag": "1"},
    {"xla_tpu_enable_async_collective_fusion": "true"},
)
VARIABLES = {"gpu": "XLA_FLAGS", "tpu": "LIBTPU_INIT_ARGS"}


def compile_something(compiler: str) -> None:
    """Compiles a small program, and says so."""
    from tests.benchmarks.accelerators.compilers import mesh_of, prepare_environment

    prepare_environment()
    import jax
    import jax.numpy as jnp

    from tests.benchmarks.accelerators.program import placed

    x = placed(jax.ShapeDtypeStruct((256, 256), jnp.float32), mesh_of(compiler, 1))
    jax.jit(lambda x: jnp.tanh(x @ x).sum()).lower(x).compile()
    print("compiled")


def compiles(compiler: str, flags: Mapping[str, str | None]) -> bool:
    """Returns whether a compiler in a fresh process works under flags."""
    code = f"from {__name__} import compile_something; compile_something({compiler!r})"
    environ = environment(**{VARIABLES[compiler]: format_flags(flags)})
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    return done.stdout.endswith("compiled\n")


def tables(compiler: str, quick: bool) -> Iterator[str]:
    """Tabulates flags: what startup says, and whether the compiler works."""
    ask: Callable[..., dict[str, str]] = check_flags if compiler == "gpu" else check_tpu_flags
    every = GPU if compiler == "gpu" else TPU
    rows, alike = [], True
    for flags in every[: QUICK if quick else None]:
        (fault,) = ask(flags).values() or [""]
        works = compiles(compiler, flags)
        rows.append([format_flags(flags), fault or "takes it", "compiles" if works else "ends"])
        alike &= works is not bool(fault)
    yield format_table(["flag", "startup", "compiler"], rows, title=f"flags, {compiler}")
    assert alike, "startup says otherwise than the compiler"
