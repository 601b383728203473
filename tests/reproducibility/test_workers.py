"""Workers: no two alike, no epoch like another, and all of it the same in a rerun."""

import copy
import itertools
import pickle
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from jinit.reproducibility import (
    MAX_SEED,
    WorkerSeeds,
    get_rng_state,
    load_rng_state,
    seed_all,
    seed_workers,
    workers,
)
from tests.processes import run, run_twice
from tests.reproducibility.pools import METHODS


def draw():
    return random.random(), float(np.random.random())


def sequence(seed, *spawn_key):
    return np.random.SeedSequence(seed, spawn_key=spawn_key)


def drawn_after(words):
    wide = sum(int(word) << 32 * place for place, word in enumerate(words[:4]))
    return random.Random(wide).random(), np.random.RandomState(words[4:8]).random_sample()


def flat(rows):
    return list(itertools.chain.from_iterable(rows))


class TestNumbers:
    @pytest.mark.parametrize("seed", [0, 7, MAX_SEED])
    def test_a_seed_as_a_number(self, seed):
        seeds = seed_workers(seed, epoch=2, process_index=5)
        for worker in (0, 3):
            found = seeds.seed(worker)
            assert found == sequence(seed, 5, 2, worker).generate_state(1)[0]
            assert type(found) is int
            assert 0 <= found <= MAX_SEED

    def test_each_part_of_the_path_matters(self):
        found = {
            seed_workers(seed, epoch=epoch, process_index=process).seed(worker)
            for seed, epoch, process, worker in itertools.product(range(3), repeat=4)
        }
        assert len(found) == 81

    def test_where_the_seed_and_the_process_come_from(self):
        with pytest.raises(RuntimeError, match=r"call jinit\.startup\(seed\) or seed_all\(seed\)"):
            seed_workers()
        seed_all(7)
        assert repr(seed_workers()) == "WorkerSeeds(root_seed=7, process_index=0, epoch=0)"
        assert seed_workers(epoch=3) == WorkerSeeds(7, 0, 3) != seed_workers()

    def test_no_backend_is_started_for_it(self):
        code = """
import json, sys
from jinit.reproducibility import seed_workers
seed_workers(7)
without = "jax" in sys.modules
import jax
from jax._src.xla_bridge import backends_are_initialized
seed_workers(7)
print(json.dumps([without, backends_are_initialized()]))
"""
        assert run(code) == [False, False]

    @pytest.mark.parametrize(
        ("name", "value", "error", "high"),
        [
            ("seed", 2**32, ValueError, MAX_SEED),
            ("seed", 1.0, TypeError, MAX_SEED),
            ("epoch", -1, ValueError, 2**31 - 1),
            ("epoch", None, TypeError, 2**31 - 1),
            ("process_index", True, TypeError, 2**31 - 1),
            ("started", -1, ValueError, 2**31 - 1),
            ("started", 1.0, TypeError, 2**31 - 1),
        ],
    )
    def test_illegal_arguments(self, name, value, error, high):
        with pytest.raises(error) as raised:
            seed_workers(**{"seed": 7, name: value})
        assert str(raised.value) == (
            f"{name} must be an integer in [0, {high}], not {value!r}: pass one, or leave it out."
        )

    def test_an_illegal_worker_seeds_nothing(self):
        before = random.getstate()
        for call in (seed_workers(7), seed_workers(7).seed):
            with pytest.raises(ValueError, match=r"worker must be an integer in .*, not -1"):
                call(-1)
        assert random.getstate() == before


class TestCalls:
    """Called here as loaders call it in a worker, whose copy comes through pickle."""

    def test_called_with_nothing(self):
        seed_workers(7, epoch=2, process_index=5)()
        # 2 stands for the numbers of multiprocessing, of which the first process has none.
        assert draw() == drawn_after(sequence(7, 5, 2, 0, 2).generate_state(8))

    def epochs(self, seeds, count):
        """What each worker of two epochs draws, where threads mix the copies of an epoch."""
        copies = [pickle.loads(pickle.dumps(seeds)) for _ in range(2 * count)]
        rows = []
        for epoch in (copies[:count], copies[count:]):
            for worker, mine in enumerate(reversed(epoch)):
                mine(worker, count)
                rows.append(draw())
        return rows

    def test_the_copies_of_an_epoch_may_go_to_any_worker(self):
        seeds = seed_workers(11)
        mixed = self.epochs(seeds, 3)
        assert len(set(flat(mixed))) == 12
        made = seeds._made
        for row, (epoch, worker) in zip(mixed, itertools.product(range(2), range(3)), strict=True):
            assert row == drawn_after(sequence(11, 0, 0, worker, 1, made, epoch).generate_state(8))

    def test_a_second_pipeline_differs(self):
        first, second = (self.epochs(seed_workers(7), 2) for _ in range(2))
        assert len({*flat(first), *flat(second)}) == 16

    def test_a_run_that_goes_on_starts_the_workers_that_it_would_have_started(self, monkeypatch):
        whole = seed_workers(7)
        first, second = self.epochs(whole, 3), self.epochs(whole, 3)

        def in_another_process(**options):
            monkeypatch.setattr(workers, "_MADE", Counter({(7, 0, 0): whole._made - 1}))
            return seed_workers(7, **options)

        interrupted = in_another_process()
        assert self.epochs(interrupted, 3) == first
        assert interrupted.started == 6
        assert self.epochs(in_another_process(started=interrupted.started), 3) == second
        assert not set(flat(first)) & set(flat(second))

    def test_workers_that_are_started_from_threads_at_once_are_all_counted(self):
        seeds = seed_workers(7)
        with ThreadPoolExecutor(8) as pool:
            copies = list(pool.map(lambda _: pickle.loads(pickle.dumps(seeds)), range(400)))
        assert seeds.started == 400
        assert sorted(each._copy for each in copies) == list(range(400))

    def test_a_workers_own_generators_are_saved_and_restored_inside_it(self):
        seed_workers(7)(3)
        state = get_rng_state()
        drawn = draw()
        seed_workers(7)(4)
        load_rng_state(state)
        assert draw() == drawn

    def test_copies_in_this_process_do_not_count_as_workers(self):
        seeds = seed_workers(7)
        assert copy.copy(seeds) is copy.deepcopy([seeds])[0] is seeds

    def test_a_copy_that_is_pickled_again_remains_itself(self):
        seeds = seed_workers(7)
        pickle.dumps(seeds)
        second = pickle.loads(pickle.dumps(seeds))
        rows = []
        for mine in (second, pickle.loads(pickle.dumps(second))):
            mine(0, 1)
            rows.append(draw())
        assert rows[0] == rows[1]

    def test_pickled_copies_are_equal(self):
        seeds = seed_workers(7, epoch=1)
        again = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(seeds))))
        assert again == seeds
        assert again.seed(3) == seeds.seed(3)


@pytest.mark.thorough
def test_pools():
    first, again = run_twice("tests.reproducibility.pools")
    assert first == again
    drawn = flat(first.values())
    assert len(drawn) == 4 * len(METHODS) + 2
    assert len(set(flat(row[:3] for row in drawn))) == 3 * len(drawn)
    assert not any(row[3] for row in drawn), "jax was imported in a worker"


@pytest.mark.thorough
def test_grain():
    first, again = run_twice("tests.reproducibility.grain_epochs")
    assert first == again
    drawn = flat(flat(first.values()))
    assert len(drawn) == 2 * 3 * 4
    assert len(set(drawn)) == len(drawn)


class Draws:
    """A dataset for PyTorch of what its workers draw."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        import torch

        return np.asarray([*draw(), float(torch.rand((), dtype=torch.float64))])


def test_torch():
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(1)
    loader = torch.utils.data.DataLoader(
        Draws(),
        num_workers=2,
        worker_init_fn=seed_workers(7),
        generator=generator,
        multiprocessing_context="spawn",
    )
    epochs, states = [], []
    for epoch in range(3):
        if epoch == 2:
            generator.set_state(states[1])  # as a run does that goes on with the second epoch
        states.append(generator.get_state())
        epochs.append(torch.cat(list(loader)).tolist())
    assert epochs[1] == epochs[2]
    assert len(set(flat(epochs[0] + epochs[1]))) == 24


def test_tf_data():
    tensorflow = pytest.importorskip("tensorflow")

    def order(seed):
        return list(tensorflow.data.Dataset.range(20).shuffle(20, seed=seed).as_numpy_iterator())

    seeds = seed_workers(7)
    assert order(seeds.seed()) == order(seed_workers(7).seed())
    assert order(seeds.seed()) != order(seeds.seed(1))
