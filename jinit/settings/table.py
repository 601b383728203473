"""Every setting of a process."""

from jinit._parsing import FLAG, SWITCH
from jinit.settings.compilation_cache import COMPILATION_CACHE
from jinit.settings.determinism import DETERMINISTIC
from jinit.settings.distributed import DISTRIBUTED
from jinit.settings.flags.xla_flags import XLA_FLAGS
from jinit.settings.jax_options import (
    CPU_DEVICES,
    DEBUG_KEY_REUSE,
    DEBUG_NANS,
    ENABLE_X64,
    PLATFORM,
    PRNG_IMPL,
)
from jinit.settings.memory import MEMORY, MEMORY_FRACTION
from jinit.settings.precision import PRECISION
from jinit.settings.processes import START_METHOD
from jinit.settings.seeds import SEED
from jinit.settings.setting import Setting, Source
from jinit.settings.threads import THREADS

__all__ = ["SETTINGS", "STRICT"]

SETTINGS: dict[str, Setting] = {
    setting.name: setting
    for setting in (
        *(XLA_FLAGS, DETERMINISTIC, THREADS, MEMORY, MEMORY_FRACTION, PLATFORM, CPU_DEVICES),
        *(DISTRIBUTED, START_METHOD, COMPILATION_CACHE, ENABLE_X64, PRNG_IMPL, PRECISION),
        *(DEBUG_NANS, DEBUG_KEY_REUSE, SEED),
    )
}
"""Every setting by name, in the order in which they are applied."""

STRICT = Setting(
    name="strict",
    variables=(Source("JINIT_STRICT", FLAG),),
    arguments=(Source("strict", SWITCH, default=False),),
    apply=lambda strict: None,
)
"""No setting of the process: what a call makes of the others that it cannot apply."""
