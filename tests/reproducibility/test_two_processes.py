"""Two processes of one run: the same root key, streams of their own, and one state of both."""

import json
import random

import jax
import numpy as np
import pytest

from jinit.reproducibility import load_rng_state
from tests.processes import run_two

CODE = """
import random, warnings
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec
from jinit.reproducibility import *
from jinit.reproducibility.seeds import seed_process

PLAIN = dict(default=lambda array: array.tolist())
found = {}

def draw():
    return random.random(), random.gauss(0, 1), np.random.random(), np.random.standard_normal()

def load(state):
    "What was warned of, what came back, and what is drawn then."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        keys = load_rng_state(state)
    return {"warned": [str(warning.message) for warning in caught], "drawn": draw(),
            "keys": {name: jax.random.key_data(key).tolist() for name, key in keys.items()}}

found["before a backend"] = seed_workers(7).process_index
seed_process(7, jax.process_index())
found["root"] = root_seed()
root = jax.random.key(root_seed())
found["key"] = jax.random.key_data(root).tolist()
mine = fold_in_process(root)
found["mine"] = jax.random.key_data(mine).tolist()
found["workers"] = [seed_workers().process_index, seed_workers().seed()]
found["first"] = draw()

mesh = jax.make_mesh((2,), ("data",))
def placed(axis):
    sharding = NamedSharding(mesh, PartitionSpec(axis))
    return jax.jit(lambda: jax.random.split(jax.random.key(3), 2), out_shardings=sharding)()
try:
    get_rng_state({"spread": placed("data")})
except ValueError as error:
    found["spread"] = str(error)

longer = {"x" * 1000 * PROCESS + "mine": mine}  # the texts that are gathered differ in length
names = [list(entry["keys"]) for entry in get_rng_state(longer)]
found["names"] = [[len(name) for name in entry] for entry in names]
state = get_rng_state({"mine": mine, "all": placed(None)})
found["types"] = sorted({type(leaf).__name__ for leaf in jax.tree.leaves(state)})
found["state"] = json.dumps(state, **PLAIN)
found["next"], found["one after"] = draw(), draw()
found["loaded"] = load(state)
found["of one"] = load(state[:1])
found["of three"] = load(json.loads(found["state"]) + state[:1])
with ocp.StandardCheckpointer() as orbax:
    orbax.save(FOLDER + "/state", state)
    orbax.wait_until_finished()
    found["through orbax"] = load(orbax.restore(FOLDER + "/state"))

held = {"all": placed(None)}
unregister = register_key("all", lambda: held["all"], lambda key: held.update(all=key))
load_rng_state(get_rng_state())
unregister()
found["placed"] = [held["all"].sharding == placed(None).sharding,
                   jax.random.key_data(held["all"].addressable_data(0)).tolist()]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return run_two(f"FOLDER = {str(tmp_path_factory.mktemp('both'))!r}\n{CODE}")


@pytest.mark.thorough
def test_the_key_is_shared_and_the_streams_are_not(both):
    zero, one = both
    assert zero["root"] == one["root"] == 7
    assert zero["key"] == one["key"]
    assert zero["mine"] != one["mine"]
    assert one["mine"] == jax.random.key_data(jax.random.fold_in(jax.random.key(7), 1)).tolist()
    assert len({*zero["first"], *one["first"]}) == 8
    assert [process["before a backend"] for process in both] == [0, 1]
    assert [process["workers"][0] for process in both] == [0, 1]
    assert zero["workers"][1] != one["workers"][1]


@pytest.mark.thorough
def test_each_has_the_state_of_both(both):
    zero, one = both
    assert zero["state"] == one["state"]
    assert zero["types"] == ["float", "int", "ndarray"]
    assert zero["names"] == one["names"] == [[4], [1004]]


SHARED = jax.random.key_data(jax.random.split(jax.random.key(3), 2)).tolist()


def test_each_goes_on_with_its_own_streams(both):
    for process in both:
        for loaded in (process["loaded"], process["through orbax"]):
            assert loaded["drawn"] == process["next"]
            assert loaded["warned"] == []
            assert loaded["keys"] == {"mine": process["mine"], "all": SHARED}


def test_a_registered_key_comes_back_on_the_devices_of_both(both):
    assert [process["placed"] for process in both] == [[True, SHARED], [True, SHARED]]


def test_a_key_that_no_process_holds_whole(both):
    text = (
        "The key 'spread' is sharded over several processes: replicate it, or save it as an array."
    )
    assert [process["spread"] for process in both] == [text, text]


def sizes(entries, count, process, fate):
    return [
        f"The RNG state is of {entries} process(es), but this run has {count}: process {process} "
        f"{fate}."
    ]


RESTORED = "is restored from its entry"
KEPT = "has no entry in it and keeps its streams"


def test_two_go_on_with_the_state_of_one(both):
    zero, one = (process["of one"] for process in both)
    assert zero["warned"] == sizes(1, 2, 0, RESTORED)
    assert zero["drawn"] == both[0]["next"]
    assert one["warned"] == sizes(1, 2, 1, KEPT)
    assert one["drawn"] == both[1]["one after"]
    assert one["keys"] == {}


def test_two_go_on_with_the_state_of_three(both):
    for number, process in enumerate(both):
        assert process["of three"]["warned"] == sizes(3, 2, number, RESTORED)
        assert process["of three"]["drawn"] == process["next"]


def test_one_goes_on_with_the_state_of_two(both):
    with pytest.warns(UserWarning, match="2 process") as warned:
        keys = load_rng_state(json.loads(both[0]["state"]))
    assert [str(warning.message) for warning in warned] == sizes(2, 1, 0, RESTORED)
    drawn = random.random(), random.gauss(0, 1), np.random.random(), np.random.standard_normal()
    assert list(drawn) == both[0]["next"]
    assert jax.random.key_data(keys["mine"]).tolist() == both[0]["mine"]
