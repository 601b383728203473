"""The whole road in two processes, against one: bit for bit up to the first sum over devices."""

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.compiler import QUICK
from tests.fastinit import road
from tests.processes import run_two

CODE = """
import jinit
from tests.fastinit import road
key = jinit.startup(0, distributed=dict(
    coordinator_address=ADDRESS, num_processes=2, process_id=PROCESS))
plain = lambda part: [leaf.tolist() if hasattr(leaf, "tolist") else leaf for leaf in part]
print(json.dumps({name: plain(part) for name, part in road.walk(key, FOLDER).items()}))
"""

# Of the largest element. Numbers are drawn where they lie; what follows is summed over devices,
# which one process does in another order.
TOLERANCES = {"drawn": 0, "calibrated": 1e-6, "multipliers": 1e-5, "trained": 1e-3}


@pytest.mark.thorough
def test_two_processes_walk_the_road_of_one(tmp_path):
    flags = f"--xla_force_host_platform_device_count=2 {QUICK}"
    options = {"JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo", "XLA_FLAGS": flags}
    code = f"FOLDER = {str(tmp_path / 'two')!r}\n{CODE}"
    first, second = run_two(code, initialize=False, warn="default", **options)
    assert first == second
    one = road.walk(jax.random.key(0), tmp_path / "one")
    assert min(one["shares"]) == 0.25
    assert first["shares"] == one["shares"]
    for name, tolerance in TOLERANCES.items():
        for found, expected in zip(first[name], one[name], strict=True):
            expected = np.asarray(expected, np.float32)
            np.testing.assert_allclose(
                found, expected, rtol=0, atol=tolerance * abs(expected).max()
            )
    assert first["scales"] == one["scales"]
    assert one["scales"][road.OVERFLOWS_AT] == one["scales"][road.OVERFLOWS_AT - 1] / 2
    restored = on_one_device(tmp_path / "two")
    for found, expected in zip(
        jax.tree.leaves(restored["variables"]), first["trained"], strict=True
    ):
        np.testing.assert_array_equal(np.asarray(found, np.float32), np.float32(expected))
    assert restored["scale"] == one["scales"][-1]


def on_one_device(folder):
    """Restores a checkpoint in this process, on its first device."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.metadata(folder).item_metadata.tree
        like = jax.tree.map(lambda leaf: placed(leaf, device), saved)
        return checkpointer.restore(folder, like)


def placed(leaf, device):
    """Returns where and as what an array is restored; a number as it is."""
    if not hasattr(leaf, "shape"):
        return 0.0
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
