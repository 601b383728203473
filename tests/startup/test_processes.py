"""One run of two processes, over loopback: one key, two streams, one seed."""

import pytest

from tests.processes import run_two

CODE = """
import random, warnings
import numpy as np
import jax, jinit
link = dict(coordinator_address=ADDRESS, num_processes=2, process_id=PROCESS)

def refused(seed):
    try: jinit.startup(seed)
    except ValueError as error: return str(error)

warnings.simplefilter("ignore")
key = jinit.startup({seed}, distributed=link, cpu_devices=2)
report = jinit.startup_report().to_dict()
own = jinit.fold_in_process(key)
state = jinit.get_rng_state({{"own": own}})
answer = {{
    "key": jax.random.key_data(key).tolist(),
    "own": jax.random.key_data(own).tolist(),
    "python": random.random(), "numpy": float(np.random.random()),
    "seed": report["settings"]["seed"],
    "place": [report["process_index"], report["process_count"], report["devices"]],
    "streams": [[len(each["python"]["state"]), list(each["keys"])] for each in state],
    "gathered": [each["keys"]["own"]["threefry2x32"].tolist() for each in state],
    "disagreed": refused(PROCESS),
    "one asked": jinit.startup(5 if PROCESS else None) == jax.random.key(5),
}}
answer["one asked"] = bool(answer["one asked"])
answer["after"] = jinit.startup_report().settings["seed"].value
print(json.dumps(answer))
"""


@pytest.mark.thorough
def test_a_seed_for_all_and_streams_for_each():
    first, second = run_two(CODE.format(seed=7), initialize=False)
    import random

    import jax

    assert first["key"] == second["key"] == jax.random.key_data(jax.random.key(7)).tolist()
    assert first["own"] != second["own"]
    assert second["own"] == jax.random.key_data(jax.random.fold_in(jax.random.key(7), 1)).tolist()
    assert first["gathered"] == second["gathered"] == [first["own"], second["own"]]
    assert first["streams"] == [[625, ["own"]]] * 2
    # Process 0 draws what a run of one process draws, and the other something else.
    assert first["python"] == random.Random(7).random()
    assert len({first["python"], second["python"], first["numpy"], second["numpy"]}) == 4
    assert first["place"] == [0, 2, {"cpu": 4}]
    assert second["place"] == [1, 2, {"cpu": 4}]
    for found in (first, second):
        assert found["disagreed"] == (
            "The processes of a run must have one seed, not {0: 0, 1: 1} by process: pass the "
            "same everywhere; jinit.fold_in_process(key) gives each process a key of its own."
        )
        assert found["one asked"] is True
        assert found["after"] == 5


@pytest.mark.thorough
def test_a_drawn_seed_is_that_of_process_0_on_all():
    draw = "import os\nos.urandom = lambda size: bytes([PROCESS + 1]) * size\n"
    first, second = run_two(draw + CODE.format(seed=None), initialize=False)
    assert first["seed"] == second["seed"]
    assert first["seed"]["value"] == 0x01010101
    assert (first["seed"]["origin"], first["seed"]["status"]) == ("default", "applied")
    assert first["key"] == second["key"]
