"""The compiler of the tests: XLA with few of its passes, which takes half the time."""

from importlib.metadata import version

DEVICES = "--xla_force_host_platform_device_count=8"
QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    # one part for one thread: each part costs a sixth of the whole, and the cores are the workers'
    "--xla_cpu_parallel_codegen_split_count=1"
)
if version("jaxlib").startswith("0.10."):  # later ones have no other emitters
    QUICK += " --xla_cpu_use_fusion_emitters=false"
