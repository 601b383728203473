"""Seeds: what is seeded, what is refused, and that a refused seed changes nothing."""

import contextlib
import random
import sys
import types

import jax
import numpy as np
import pytest

from jinit.reproducibility import (
    MAX_SEED,
    fold_in_process,
    get_random_seed,
    root_seed,
    seed_all,
    seed_context,
)
from jinit.reproducibility.seeds import seed_process
from tests import processes

NO_ROOT_SEED = (
    "There is no root seed yet: call jinit.startup(seed) or seed_all(seed) first, or pass seed=."
)
ILLEGAL = [
    (-1, ValueError, "-1"),
    (2**32, ValueError, "4294967296"),
    (np.int64(-5), ValueError, "np.int64(-5)"),
    (True, TypeError, "True"),
    (np.True_, TypeError, "np.True_"),
    (3.0, TypeError, "3.0"),
    ("7", TypeError, "'7'"),
    (None, TypeError, "None"),
]


def draw():
    return random.random(), float(np.random.random())


def drawn_after(seed):
    return random.Random(seed).random(), np.random.RandomState(seed).random()


def assert_state(python, numpy):
    assert random.getstate() == python
    np.testing.assert_equal(np.random.get_state(), numpy)


@pytest.mark.parametrize("seed", [0, 42, MAX_SEED, np.int64(42), np.uint32(MAX_SEED)])
def test_seed_all_seeds_python_and_numpy(seed):
    seed_all(seed)
    assert draw() == drawn_after(int(seed))
    assert root_seed() == seed
    assert type(root_seed()) is int


@pytest.mark.parametrize("function", [seed_all, seed_context, lambda seed: seed_process(seed, 1)])
@pytest.mark.parametrize(("seed", "error", "shown"), ILLEGAL)
def test_an_illegal_seed_seeds_nothing(function, seed, error, shown):
    python, numpy = random.getstate(), np.random.get_state()
    with pytest.raises(error) as raised:
        function(seed)
    assert str(raised.value) == (
        f"seed must be an integer in [0, 4294967295], not {shown}: pass one, or leave it out."
    )
    assert_state(python, numpy)
    with pytest.raises(RuntimeError):
        root_seed()


@pytest.mark.parametrize("seeding", [seed_all, lambda seed: seed_context(seed).__enter__()])
def test_a_numpy_generator_that_cannot_be_seeded(another_numpy_generator, seeding):
    python, numpy = random.getstate(), np.random.get_state(legacy=False)
    with pytest.raises(RuntimeError) as raised:
        seeding(7)
    assert str(raised.value) == another_numpy_generator
    assert random.getstate() == python
    np.testing.assert_equal(np.random.get_state(legacy=False), numpy)
    with pytest.raises(RuntimeError, match="no root seed"):
        root_seed()


def test_max_seed_is_the_last_that_has_a_key_of_its_own():
    bits = [jax.random.bits(jax.random.key(seed)) for seed in (MAX_SEED, 0, MAX_SEED + 1)]
    assert bits[0] != bits[1]
    assert bits[1] == bits[2]


def test_random_seeds_are_legal_and_ignore_earlier_seeds():
    drawn = []
    for _ in range(20):
        seed_all(0)
        before = random.getstate()
        drawn.append(get_random_seed())
        assert random.getstate() == before
    assert all(0 <= seed <= MAX_SEED for seed in drawn)
    assert len(set(drawn)) > 15


def test_there_is_no_root_seed_before_seeding():
    with pytest.raises(RuntimeError) as raised:
        root_seed()
    assert str(raised.value) == NO_ROOT_SEED


class TestSeedProcess:
    @pytest.mark.parametrize("seed", [0, 42, MAX_SEED])
    def test_process_0_is_as_the_only_one(self, seed):
        seed_process(seed, 0)
        assert draw() == drawn_after(seed)

    @pytest.mark.parametrize(("seed", "index"), [(0, 1), (42, 7), (MAX_SEED, 2**31 - 1)])
    def test_the_others_draw_from_a_seed_sequence(self, seed, index):
        words = np.random.SeedSequence(seed, spawn_key=(index,)).generate_state(8)
        seed_process(np.int64(seed), np.int32(index))
        wide = sum(int(word) << 32 * place for place, word in enumerate(words[:4]))
        assert draw() == (
            random.Random(wide).random(),
            np.random.RandomState(words[4:]).random_sample(),
        )
        assert root_seed() == seed

    def test_no_two_streams_of_thousands_meet(self):
        first = []
        for index in range(3000):
            seed_process(MAX_SEED - index % 2, index // 2)
            first += draw()
        assert len(set(first)) == 6000

    @pytest.mark.parametrize(
        ("index", "error"), [(-1, ValueError), (2**31, ValueError), (1.0, TypeError)]
    )
    def test_an_illegal_index_seeds_nothing(self, index, error):
        python, numpy = random.getstate(), np.random.get_state()
        with pytest.raises(error) as raised:
            seed_process(7, index)
        assert str(raised.value) == (
            f"process_index must be an integer in [0, 2147483647], not {index!r}: pass one, or "
            "leave it out."
        )
        assert_state(python, numpy)
        with pytest.raises(RuntimeError):
            root_seed()


class TestFoldInProcess:
    def test_it_folds_in_the_process(self, make_key):
        key = make_key(42)
        expected = jax.random.bits(jax.random.fold_in(make_key(42), 0))
        for found in (fold_in_process(key), jax.jit(fold_in_process)(key)):
            assert found.dtype == key.dtype
            assert jax.random.bits(found) == expected
        assert jax.random.bits(key) != expected

    def test_transformations(self, make_key):
        many = jax.vmap(make_key)(np.arange(3))
        folded = jax.vmap(fold_in_process)(many)
        bits = [jax.random.bits(key) for key in folded]
        assert bits == [jax.random.bits(fold_in_process(key)) for key in many]
        shape = jax.eval_shape(fold_in_process, make_key(1))
        assert (shape.shape, shape.dtype) == (make_key(1).shape, make_key(1).dtype)


@pytest.mark.parametrize("value", [0, None, "0"])
def test_what_is_not_a_key_is_not_folded(value):
    with pytest.raises(TypeError) as raised:
        fold_in_process(value)
    assert str(raised.value) == f"The key must be one such as jax.random.key(0), not {value!r}."


class TestSeedContext:
    def test_streams_inside_and_after(self):
        seed_all(7)
        random.gauss(0, 1)  # both cache a second number, which belongs to the stream
        np.random.standard_normal()
        python, numpy = random.getstate(), np.random.get_state()
        with seed_context(42):
            assert root_seed() == 42
            assert draw() == drawn_after(42)
            with seed_context(np.uint32(3)):
                assert root_seed() == 3
                assert draw() == drawn_after(3)
            assert root_seed() == 42
            stream = random.Random(42)
            stream.random()
            assert random.random() == stream.random()
        assert root_seed() == 7
        assert_state(python, numpy)

    def test_after_an_exception(self):
        python, numpy = random.getstate(), np.random.get_state()
        with pytest.raises(ZeroDivisionError), seed_context(42):
            draw()[0] / 0
        assert_state(python, numpy)
        with pytest.raises(RuntimeError):
            root_seed()

    def test_it_decorates(self):
        seeded_draw = seed_context(42)(draw)
        python, numpy = random.getstate(), np.random.get_state()
        assert seeded_draw() == seeded_draw() == drawn_after(42)
        assert_state(python, numpy)

    def test_nothing_is_seeded_before_it_is_entered(self):
        python, numpy = random.getstate(), np.random.get_state()
        seed_context(42)
        assert_state(python, numpy)


class TestFrameworks:
    """Stand-ins are enough to see who is called; the real ones follow where installed."""

    def test_only_imported_frameworks_are_seeded(self):
        code = """
import json, sys
from jinit.reproducibility import seed_all, seed_context
seed_all(7)
with seed_context(7):
    pass
print(json.dumps(sorted({"torch", "tensorflow", "jax"} & set(sys.modules))))
"""
        assert processes.run(code) == []

    @pytest.fixture
    def seeds(self, monkeypatch):
        """The seeds that the stand-ins were given."""
        given = {"torch": [], "tensorflow": []}
        torch = types.SimpleNamespace(manual_seed=given["torch"].append)
        set_seed = types.SimpleNamespace(set_seed=given["tensorflow"].append)
        monkeypatch.setitem(sys.modules, "torch", torch)
        monkeypatch.setitem(sys.modules, "tensorflow", types.SimpleNamespace(random=set_seed))
        return given

    def test_imported_frameworks_are_seeded(self, seeds):
        seed_all(MAX_SEED)
        assert seeds == {"torch": [MAX_SEED], "tensorflow": [MAX_SEED]}
        seed_process(7, 3)
        words = np.random.SeedSequence(7, spawn_key=(3,)).generate_state(10)
        wide = (int(words[8]) + (int(words[9]) << 32)) // 2
        assert [given[1:] for given in seeds.values()] == [[wide], [wide]]
        assert wide < 2**63

    def test_a_context_leaves_tensorflow_alone(self, seeds):
        with seed_context(7):
            pass
        assert seeds["tensorflow"] == []

    def test_a_context_forks_torch(self, monkeypatch):
        events = []

        @contextlib.contextmanager
        def fork_rng(devices):
            events.append(("fork", devices))
            yield
            events.append("restore")

        torch = types.SimpleNamespace(
            random=types.SimpleNamespace(fork_rng=fork_rng),
            default_generator=types.SimpleNamespace(manual_seed=events.append),
        )
        monkeypatch.setitem(sys.modules, "torch", torch)
        with seed_context(42):
            assert events == [("fork", []), 42]
        assert events == [("fork", []), 42, "restore"]

    @pytest.mark.parametrize("module", [None, types.ModuleType("half")])
    def test_half_imported_frameworks_are_passed_over(self, monkeypatch, module):
        for name in ("torch", "tensorflow"):
            monkeypatch.setitem(sys.modules, name, module)
        seed_all(7)
        with seed_context(42):
            assert draw() == drawn_after(42)
        assert draw() == drawn_after(7)

    def test_torch(self):
        torch = pytest.importorskip("torch")
        torch.manual_seed(7)
        first = torch.rand(3)
        seed_all(7)
        torch.testing.assert_close(torch.rand(3), first, rtol=0, atol=0)
        state = torch.get_rng_state()
        with seed_context(7):
            torch.testing.assert_close(torch.rand(3), first, rtol=0, atol=0)
        assert torch.equal(torch.get_rng_state(), state)
        with pytest.raises(ZeroDivisionError), seed_context(7):
            torch.rand(3).tolist()[0] / 0
        assert torch.equal(torch.get_rng_state(), state)

    def test_tensorflow(self):
        tensorflow = pytest.importorskip("tensorflow")
        drawn = []
        for seed in (7, 7, 8):
            seed_all(seed)
            drawn.append(tensorflow.random.uniform((3,)).numpy().tolist())
        assert drawn[0] == drawn[1] != drawn[2]
