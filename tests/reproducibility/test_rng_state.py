"""RNG states: exact, plain, checked before anything changes, and put back whole or not at all."""

import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from jinit.reproducibility import get_rng_state, load_rng_state, register_key, seed_all
from tests import processes

KEYS = {
    "typed": jax.random.key(1),
    "several": jax.random.split(jax.random.key(2), (2, 3)),
    "legacy": jax.random.PRNGKey(3),
    "rbg": jax.random.key(4, impl="rbg"),
    "a/b.c d": jax.random.key(5, impl="philox4x32"),
}
FAULTY = "This is no RNG state that can be restored, and nothing was changed:\n  "
REMEDY = "\n  Pass what get_rng_state returned, or load another checkpoint."


def streams():
    return random.getstate(), np.random.get_state()


def draw():
    """Draws once from each cache of Gaussian numbers too."""
    return (
        random.random(),
        random.gauss(0, 1),
        np.random.random(),
        np.random.standard_normal(),
        np.random.permutation(9).tolist(),
    )


def assert_same_key(found, key):
    assert (found.dtype, found.shape) == (key.dtype, key.shape)
    words = [jax.random.key_data(one) if one.dtype != np.uint32 else one for one in (found, key)]
    np.testing.assert_array_equal(*words)


def through_json(state, folder):
    return json.loads(json.dumps(state, default=lambda array: array.tolist()))


def through_orbax(checkpointer, *, target):
    def save_and_restore(state, folder):
        with checkpointer() as orbax:
            orbax.save(folder / "state", state)
            if hasattr(orbax, "wait_until_finished"):
                orbax.wait_until_finished()
            return orbax.restore(folder / "state", state if target else None)

    return save_and_restore


def through_zero_dimensional_arrays(state, folder):
    return jax.tree.map(np.asarray, state)


ROUTES = {
    "as it is": lambda state, folder: state,
    "json": through_json,
    "arrays": through_zero_dimensional_arrays,
    "standard": through_orbax(ocp.StandardCheckpointer, target=False),
    "standard, with a target": through_orbax(ocp.StandardCheckpointer, target=True),
    "pytree": through_orbax(ocp.PyTreeCheckpointer, target=False),
}


class TestRoundTrips:
    @pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)
    @pytest.mark.parametrize("draws", [0, 1, 2, 311])
    def test_streams_continue_bit_for_bit(self, tmp_path, route, draws):
        seed_all(7)
        for _ in range(draws):
            draw()
        at_save = streams()
        state = route(get_rng_state(), tmp_path)
        expected = [draw() for _ in range(700)]
        seed_all(8)
        draw()
        assert load_rng_state(state) == {}
        assert random.getstate() == at_save[0]
        np.testing.assert_equal(np.random.get_state(), at_save[1])
        assert [draw() for _ in range(700)] == expected

    @pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)
    def test_keys_come_back_in_kind(self, tmp_path, route):
        keys = load_rng_state(route(get_rng_state(KEYS), tmp_path))
        assert keys.keys() == KEYS.keys()
        for name, key in KEYS.items():
            assert_same_key(keys[name], key)

    def test_the_entry_is_plain(self):
        (entry,) = get_rng_state(KEYS)
        shapes = jax.tree.map(lambda leaf: getattr(leaf, "shape", type(leaf)), entry)
        gauss = {"has_gauss": int, "gauss": float}
        assert shapes == {
            "python": {"version": int, "state": (625,), **gauss},
            "numpy": {"state": (624,), "pos": int, **gauss},
            "keys": {
                "typed": {"threefry2x32": (2,)},
                "several": {"threefry2x32": (2, 3, 2)},
                "legacy": {"raw": (2,)},
                "rbg": {"rbg": (4,)},
                "a/b.c d": {"philox4x32": (2,)},
            },
        }
        arrays = [leaf for leaf in jax.tree.leaves(entry) if hasattr(leaf, "dtype")]
        assert all(type(array) is np.ndarray for array in arrays)
        assert {array.dtype for array in arrays} == {np.dtype(np.uint32)}

    def test_jax_arrays_without_a_cached_number(self):
        seed_all(7)
        expected = streams()
        state = jax.tree.map(jnp.asarray, get_rng_state())  # float32 without x64
        seed_all(8)
        load_rng_state(state)
        assert random.getstate() == expected[0]
        np.testing.assert_equal(np.random.get_state(), expected[1])

    def test_what_was_saved_does_not_change_later(self):
        state = get_rng_state()
        before = through_json(state, None)
        draw()
        load_rng_state(state)
        draw()
        assert through_json(state, None) == before

    def test_sharded_and_replicated_keys_are_saved_whole(self):
        mesh = jax.make_mesh((8,), ("data",))
        keys = jax.random.split(jax.random.key(1), 8)
        placed = {
            str(axis): jax.device_put(keys, NamedSharding(mesh, PartitionSpec(axis)))
            for axis in ("data", None)
        }
        for found in load_rng_state(get_rng_state(placed)).values():
            assert_same_key(found, keys)

    def test_keys_are_put_where_they_are_wanted(self, make_key):
        spread = NamedSharding(jax.make_mesh((8,), ("d",)), PartitionSpec("d"))
        keys = {"keys": jax.vmap(make_key)(jnp.arange(8)), "key": make_key(3)}
        state = get_rng_state(keys)
        loaded = load_rng_state(state, {"keys": spread})
        assert (loaded["keys"].sharding, loaded["key"].committed) == (spread, False)
        assert all(bool(jnp.all(loaded[name] == key)) for name, key in keys.items())

    def test_a_sharding_that_does_not_fit_changes_nothing(self):
        spread = NamedSharding(jax.make_mesh((8,), ("d",)), PartitionSpec("d"))
        state = get_rng_state({"keys": jax.random.split(jax.random.key(1), 3)})
        random.random()
        before = random.getstate()
        fault = r"^The key 'keys' of shape \(3,\) cannot be put on Named"
        with pytest.raises(ValueError, match=fault):
            load_rng_state(state, {"keys": spread})
        with pytest.raises(ValueError, match=r'"keys"\]\["other"\]: expected the key of shardings'):
            load_rng_state(state, {"other": spread})
        assert random.getstate() == before

    def test_jax_is_not_needed_without_keys(self):
        code = """
import json, sys, random
from jinit.reproducibility import get_rng_state, load_rng_state
state, drawn = get_rng_state(), random.random()
load_rng_state(state)
print(json.dumps([random.random() == drawn, "jax" in sys.modules]))
"""
        assert processes.run(code) == [True, False]


class TestKeysThatCannotBeSaved:
    @pytest.mark.parametrize(
        ("key", "error", "fault"),
        [
            (7, TypeError, "is no key but 7"),
            (None, TypeError, "is no key but None"),
            (jnp.zeros(2), TypeError, "is no key but float32[2]"),
            (np.zeros(3, np.uint32), TypeError, "is no key but uint32[3]"),
            (np.uint32(3), TypeError, "is no key but np.uint32(3)"),
            (jnp.uint32(3), TypeError, "is no key but uint32[]"),
            (jax.random.split(KEYS["typed"], 0), ValueError, "is an empty array of shape (0,)"),
        ],
        ids=str,
    )
    def test_what_is_no_key(self, key, error, fault):
        with pytest.raises(error) as raised:
            get_rng_state({"fine": KEYS["typed"], "dropout": key})
        assert str(raised.value) == f"The key 'dropout' {fault}."

    def test_traced_keys(self, make_key):
        with pytest.raises(TypeError) as raised:
            jax.jit(lambda key: get_rng_state({"dropout": key}))(make_key(1))
        assert str(raised.value) == (
            "The key 'dropout' is traced and has no value: call this outside of jit."
        )

    def test_deleted_keys(self, make_key):
        key = jax.jit(lambda key: key)(make_key(1))
        key.delete()
        with pytest.raises(ValueError, match=r"^The key 'dropout' was deleted, as a donated"):
            get_rng_state({"dropout": key})

    @pytest.mark.parametrize(
        ("name", "error", "text"),
        [
            (3, TypeError, "The name of a key must be a string, not 3."),
            ("", ValueError, "The name of a key must not be empty."),
        ],
    )
    def test_names(self, name, error, text):
        for call in (
            lambda: get_rng_state({name: KEYS["typed"]}),
            lambda: register_key(name, dict, dict),
        ):
            with pytest.raises(error) as raised:
                call()
            assert str(raised.value) == text

    def test_a_key_without_a_name(self):
        with pytest.raises(TypeError) as raised:
            get_rng_state(KEYS["typed"])
        assert str(raised.value).startswith("The keys must be a dict of JAX keys by name, not an a")


@pytest.fixture
def places():
    """Two registered keys: ``places`` holds them by name."""
    keys = {"dropout": jax.random.key(1), "noise": jax.random.PRNGKey(2)}
    ends = [register_for(keys, name) for name in keys]
    yield keys
    for end in ends:
        end()


def register_for(keys, name):
    return register_key(name, lambda: keys[name], lambda key: keys.update({name: key}))


class TestRegisteredKeys:
    def test_they_are_saved_and_put_back(self, places):
        saved = dict(places)
        state = get_rng_state({"mine": KEYS["rbg"]})
        assert list(state[0]["keys"]) == ["mine", "dropout", "noise"]
        places.update(dropout=jax.random.key(7), noise=jax.random.PRNGKey(8))
        keys = load_rng_state(state)
        assert keys.keys() == {"mine", "dropout", "noise"}
        for name, key in saved.items():
            assert places[name] is keys[name]
            assert_same_key(places[name], key)

    def test_they_come_back_where_the_keys_in_their_places_are(self, places, make_key):
        mesh = jax.make_mesh((8,), ("d",))
        spread = NamedSharding(mesh, PartitionSpec("d"))
        makes = {
            "replicated": (make_key(1), NamedSharding(mesh, PartitionSpec())),
            "spread": (jax.vmap(make_key)(jnp.arange(16)), spread),
            "elsewhere": (make_key(2), SingleDeviceSharding(jax.devices()[5])),
        }
        keys = {name: jax.device_put(key, where) for name, (key, where) in makes.items()}
        held = dict(keys)
        ends = [register_for(held, name) for name in keys]
        state = get_rng_state()
        held.update({n: jax.jit(lambda k: k, out_shardings=k.sharding)(k) for n, k in keys.items()})
        loaded = load_rng_state(state)
        for name, key in keys.items():
            assert held[name].sharding == loaded[name].sharding == key.sharding
            assert held[name].committed
            assert bool(jnp.all(held[name] == key))
        for end in ends:
            end()

    def test_what_nobody_placed_is_not_bound_to_a_device(self, places):
        """A key that is bound to one device cannot be used beside arrays on others."""
        held = {"key": jax.random.key(1)}
        end = register_for(held, "key")
        load_rng_state(get_rng_state())
        end()
        elsewhere = jax.device_put(jnp.ones(3), jax.devices()[3])
        noise = jax.jit(lambda key, x: x + jax.random.normal(key, (3,)))
        assert noise(held["key"], elsewhere).devices() == {jax.devices()[3]}

    def test_a_key_of_another_shape_does_not_take_the_sharding(self, places):
        mesh = jax.make_mesh((8,), ("d",))
        held = {"keys": jax.random.split(jax.random.key(1), 3)}
        end = register_for(held, "keys")
        state = get_rng_state()
        spread = NamedSharding(mesh, PartitionSpec("d"))
        held["keys"] = jax.device_put(jax.random.split(jax.random.key(1), 8), spread)
        load_rng_state(state)
        end()
        assert held["keys"].shape == (3,)

    def test_a_name_is_taken_once(self, places):
        with pytest.raises(ValueError, match="already registered") as raised:
            register_for(places, "noise")
        assert str(raised.value) == (
            "The key 'noise' is already registered: unregister it first, or choose another name."
        )
        with pytest.raises(ValueError, match="registered too") as raised:
            get_rng_state({"noise": KEYS["typed"]})
        assert str(raised.value) == (
            "The key 'noise' is registered too: pass it under another name."
        )

    def test_the_end_of_a_registration(self, places):
        end = register_for({"more": KEYS["typed"]}, "more")
        end()
        assert list(get_rng_state()[0]["keys"]) == ["dropout", "noise"]
        end_of_the_next = register_for({"more": KEYS["typed"]}, "more")
        end()  # the old registration's, which must not end the new one
        assert list(get_rng_state()[0]["keys"]) == ["dropout", "noise", "more"]
        end_of_the_next()

    def test_what_cannot_be_called(self):
        with pytest.raises(TypeError) as raised:
            register_key("dropout", dict, None)
        assert str(raised.value) == "set must be a function, not None."

    def test_one_that_the_state_lacks(self, places):
        state = get_rng_state()
        del state[0]["keys"]["noise"]
        before, kept = streams(), dict(places)
        with pytest.raises(ValueError, match="no RNG state") as raised:
            load_rng_state(state)
        assert str(raised.value) == (
            f'{FAULTY}rng_state[0]["keys"]["noise"]: expected the registered key, found nothing'
            f"{REMEDY}"
        )
        assert_unchanged(before, places, kept)

    def test_one_that_cannot_be_set(self, places):
        def set_and_fail(key):
            random.random()
            broken["broken"] = key
            if key is not old:
                raise OSError("no room")

        broken = {"broken": jax.random.key(3)}
        old = broken["broken"]
        end = register_key("broken", lambda: broken["broken"], set_and_fail)
        state = get_rng_state()
        places.update(dropout=jax.random.key(7), noise=jax.random.PRNGKey(8))
        draw()
        before, kept = streams(), dict(places)
        with pytest.raises(OSError, match="no room"):
            load_rng_state(state)
        assert_unchanged(before, places, kept)
        assert broken["broken"] is old
        end()


def assert_unchanged(before, places, kept):
    assert random.getstate() == before[0]
    np.testing.assert_equal(np.random.get_state(), before[1])
    assert places.keys() == kept.keys()
    assert all(places[name] is kept[name] for name in kept)


class TestOtherProcessCounts:
    def test_a_state_of_two_in_a_single_process(self, places):
        (first,) = get_rng_state()
        drawn = draw()
        (second,) = get_rng_state()
        with pytest.warns(UserWarning, match="2 process") as warned:
            keys = load_rng_state([first, second])
        assert [str(warning.message) for warning in warned] == [
            "The RNG state is of 2 process(es), but this run has 1: process 0 is restored from "
            "its entry."
        ]
        assert warned[0].filename == __file__
        assert keys["dropout"] is places["dropout"]
        assert draw() == drawn

    def test_a_warning_that_is_an_error_comes_before_any_change(self, places):
        state, kept = get_rng_state() * 2, dict(places)
        draw()
        before = streams()
        with pytest.raises(UserWarning, match="2 process"):
            load_rng_state(state)
        assert_unchanged(before, places, kept)


def test_a_numpy_generator_without_such_a_state(another_numpy_generator):
    state = [entry_of_another_run()]
    before = random.getstate(), np.random.get_state(legacy=False)
    for call in (get_rng_state, lambda: load_rng_state(state)):
        with pytest.raises(RuntimeError) as raised:
            call()
        assert str(raised.value) == another_numpy_generator
    assert random.getstate() == before[0]
    np.testing.assert_equal(np.random.get_state(legacy=False), before[1])


def entry_of_another_run():
    """Written by hand from the documented format, with cached Gaussian numbers."""
    words = np.arange(1, 625, dtype=np.uint32)
    return {
        "python": {"version": 3, "state": np.append(words, np.uint32(5)), "has_gauss": 1,
                   "gauss": 0.1},
        "numpy": {"state": words[::-1].copy(), "pos": 624, "has_gauss": 1, "gauss": -0.2},
        "keys": {
            "dropout": {"threefry2x32": np.uint32([1, 2])},
            "noise": {"raw": np.uint32([[3, 4], [5, 6]])},
            "rbg": {"rbg": np.uint32([1, 2, 3, 4])},
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("has_gauss", "gauss", "cached"), [(1, 0.1, 0.1), (1, 0.0, 0.0), (0, 0.1, None)]
)
def test_a_state_written_by_hand(places, has_gauss, gauss, cached):
    entry = entry_of_another_run()
    entry["python"].update(has_gauss=has_gauss, gauss=gauss)
    load_rng_state([entry])
    assert random.getstate() == (3, (*range(1, 625), 5), cached)
    expected = ("MT19937", np.arange(624, 0, -1, dtype=np.uint32), 624, 1, -0.2)
    np.testing.assert_equal(np.random.get_state(), expected)
    assert bool(places["dropout"] == jax.random.wrap_key_data(jnp.uint32([1, 2])))
    np.testing.assert_array_equal(places["noise"], [[3, 4], [5, 6]])
    assert get_rng_state()[0]["python"]["has_gauss"] == has_gauss


class TestCorruptStates:
    """One field of a valid state is spoilt: the error names it, and nothing changes."""

    def refused(self, state, places):
        before, kept = streams(), dict(places)
        with pytest.raises(ValueError, match="no RNG state") as raised:
            load_rng_state(state)
        assert_unchanged(before, places, kept)
        text = str(raised.value)
        assert text.startswith(FAULTY)
        assert text.endswith(REMEDY)
        return text[len(FAULTY) : -len(REMEDY)].split("\n  ")

    @pytest.mark.parametrize(
        ("path", "value", "text"),
        [
            (("python", "version"), 2, "expected 3, found 2"),
            (("python", "state"), [1, 2], "expected uint32[625], found a list of 2, [1, 2]"),
            (("python", "state"), [-1] * 625, None),
            (("python", "state"), [0] * 624 + [2**32], None),
            (("numpy", "state"), np.zeros(3, "f"), "expected uint32[624], found float32[3]"),
            (("numpy", "state"), {"a": 1}, "expected uint32[624], found {'a': 1}"),
            (("numpy", "state"), [[1], [1, 2]], None),
            (("numpy", "pos"), 625, "expected an integer in [0, 624], found 625"),
            (("numpy", "pos"), True, "expected an integer in [0, 624], found True"),
            (("numpy", "has_gauss"), 2, "expected an integer in [0, 1], found 2"),
            (("numpy", "gauss"), np.float32(0.1), None),
            (("numpy", "gauss"), float("nan"), "expected a finite float64, found nan"),
            (("numpy", "gauss"), np.zeros(2), "expected a finite float64, found float64[2]"),
            (("numpy",), [], "expected a dict of state, pos, has_gauss, gauss, found []"),
            (("keys",), [], "expected a dict of keys by name, found []"),
            (
                ("keys", "rbg"),
                {},
                "expected a dict of the name of one PRNG implementation (or raw) and its words, "
                "found {}",
            ),
            (
                ("keys", "rbg", "rbg"),
                np.uint32([1, 2]),
                "expected a key (JAX encountered invalid PRNG key data: expected key_data.shape "
                "to end with (4,); got shape=(2,)), found uint32[2]",
            ),
            (("keys", "rbg", "rbg"), KEYS["rbg"], None),
            (("keys", "noise", "raw"), np.uint32(7), None),
            (("keys", "noise", "raw"), [], "expected uint32 words, found []"),
        ],
        ids=str,
    )
    def test_texts(self, places, path, value, text):
        state = [entry_of_another_run(), entry_of_another_run()]
        node = state[1]
        for name in path[:-1]:
            node = node[name]
        node[path[-1]] = value
        (found,) = self.refused(state, places)
        where = "rng_state[1]" + "".join(f'["{name}"]' for name in path)
        assert found.startswith(f"{where}: expected ")
        assert text is None or found == f"{where}: {text}"

    def test_a_position_beyond_the_words(self, places):
        entry = entry_of_another_run()
        entry["python"]["state"][-1] = 625
        assert self.refused([entry], places) == [
            'rng_state[0]["python"]["state"][624]: expected an integer in [0, 624], found '
            "np.uint32(625)"
        ]

    def test_an_implementation_that_jax_does_not_know(self, places):
        entry = entry_of_another_run()
        entry["keys"]["rbg"] = {"mersenne": np.uint32([1, 2])}
        (found,) = self.refused([entry], places)
        assert found.startswith(
            'rng_state[0]["keys"]["rbg"]["mersenne"]: expected a key (unrecognized PRNG '
            'implementation "mersenne"'
        )

    @pytest.mark.parametrize(
        ("state", "found"),
        [
            (None, "None"),
            ([], "[]"),
            ({"0": {}}, "{'0': {}}"),
            ("state", "'state'"),
            (np.zeros(3), "float64[3]"),
        ],
        ids=str,
    )
    def test_what_is_no_list(self, places, state, found):
        assert self.refused(state, places) == [
            f"rng_state: expected a list of one entry for each process, found {found}"
        ]

    def test_all_faults_are_told_at_once(self, places):
        entry = entry_of_another_run()
        del entry["python"]["gauss"], entry["numpy"]["state"]
        entry["numpy"]["extra"] = None
        assert self.refused([entry, 5], places) == [
            'rng_state[0]["python"]["gauss"]: expected a finite float64, found nothing',
            'rng_state[0]["numpy"]["extra"]: expected no such field, found None',
            'rng_state[0]["numpy"]["state"]: expected uint32[624], found nothing',
            "rng_state[1]: expected a dict of python, numpy, keys, found 5",
        ]
        shown = self.refused([5] * 10, places)
        assert [line.partition(":")[0] for line in shown] == [
            *(f"rng_state[{i}]" for i in range(8)),
            "and 2 more",
        ]

    @settings(max_examples=150, deadline=None)
    @given(data=st.data())
    def test_any_single_fault(self, data):
        places = {"dropout": jax.random.key(1), "noise": jax.random.PRNGKey(2)}
        ends = [register_for(places, name) for name in places]
        try:
            state = [entry_of_another_run(), entry_of_another_run()]
            path = data.draw(spoil(state), label="spoilt")
            found = self.refused(state, places)
            assert found
            assert all(line.startswith(path) for line in found)
        finally:
            for end in ends:
                end()


def fields(node, path):
    """Every field below a dict: its path, the dict that holds it, and its name."""
    for name, value in node.items():
        here = f'{path}["{name}"]'
        yield here, node, name
        if isinstance(value, dict):
            yield from fields(value, here)


@st.composite
def spoil(draw, state):
    """Spoils one field of a state, in place; the path of the field that is now at fault."""
    index = draw(st.integers(0, 1))
    path, node, name = draw(st.sampled_from(list(fields(state[index], f"rng_state[{index}]"))))
    kinds = [kind for kind in (delete, replace, add) if kind(node, name, path) is not None]
    faults = draw(st.sampled_from(kinds))(node, name, path)
    at_fault, change = draw(st.sampled_from(faults))
    change()
    return at_fault


def delete(node, name, path):
    parent = path[: path.rindex("[")]
    if parent.endswith('["keys"]'):
        return None  # a state may hold any keys but the registered ones
    if '["keys"]' in parent:
        return [(parent, lambda: node.pop(name))]
    return [(path, lambda: node.pop(name))]


def add(node, name, path):
    inner = node[name]
    if not isinstance(inner, dict):
        return None
    # A key has one implementation, and is itself at fault if it has another.
    at_fault = path if '["keys"]["' in path else f'{path}["extra"]'
    return [(at_fault, lambda: inner.update(extra=3))]


def replace(node, name, path):
    old = node[name]
    wrong = [None, "text", b"bytes", object(), [], {"a": 1}, np.zeros((0, 3), np.uint32)]
    if isinstance(old, np.ndarray):
        wrong += [old.astype(np.int64), old.astype(np.float32), old[..., :-1], old[None][..., :1]]
        wrong += [old.tobytes(), (old.astype(np.int64) - 2**20).tolist(), old.astype(str).tolist()]
    elif isinstance(old, float):
        wrong += [1, True, np.float32(old), float("inf"), np.asarray([old]), 1j * old]
    elif isinstance(old, int):
        wrong += [-1, 2**40, float(old), bool(old), [old], str(old), np.asarray([old])]
    return [(path, lambda value=value: node.update({name: value})) for value in wrong]
