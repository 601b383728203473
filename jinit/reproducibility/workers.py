"""Seeds for data-loading workers: no two draw alike, and no epoch repeats another."""

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jinit.reproducibility.generators import imported, seed_from_sequence
from jinit.reproducibility.processes import process_index as this_process
from jinit.reproducibility.seeds import parse_index, parse_seed, root_seed

if TYPE_CHECKING:
    import numpy as np

__all__ = ["WorkerSeeds", "seed_workers"]

# What tells the epochs apart; first in the key, so that no two kinds can spell the same key.
_TORCH, _COPIES, _PROCESSES = range(3)

_MADE: Counter[tuple[int, int, int]] = Counter()


class _Count:
    """Counts from a number; threads may take numbers at once."""

    def __init__(self, number: int = 0) -> None:
        self.number, self._lock = number, threading.Lock()

    def take(self) -> int:
        with self._lock:
            self.number += 1
            return self.number - 1


@dataclass(frozen=True)
class WorkerSeeds:
    """Seeds the worker that calls it; made by ``seed_workers``.

    Attributes:
        root_seed: The run's seed.
        process_index: The process of the run that starts the workers.
        epoch: The epoch, where the user counts them.
    """

    root_seed: int
    process_index: int
    epoch: int
    _made: int = field(default=0, repr=False, compare=False)
    _copy: int | None = field(default=None, repr=False, compare=False)
    _copies: "_Count" = field(default_factory=lambda: _Count(), repr=False, compare=False)

    @property
    def started(self) -> int:
        """How many workers were started so far, for a checkpoint: ``seed_workers(started=)``."""
        return self._copies.number

    def __call__(self, worker: int = 0, worker_count: int | None = None) -> None:
        """Seeds this process's Python, NumPy, PyTorch and TensorFlow generators.

        Args:
            worker: The worker's number, where the loader gives one.
            worker_count: The number of workers, where the loader gives it.
        """
        seed_from_sequence(self._sequence(worker, self._fresh(worker_count)))

    def seed(self, worker: int = 0) -> int:
        """Returns a worker's seed as a number, the same each time.

        For what takes a number, such as tf.data's ``shuffle(seed=)``: tf.data runs its workers as
        threads of this process, where no generator is theirs to be seeded.

        Args:
            worker: The number of the worker, or of the operation that takes the seed.

        Returns:
            An integer in [0, ``MAX_SEED``].

        Example:
            >>> seeds = seed_workers(7)
            >>> seeds.seed() == seeds.seed(worker=1)
            False
        """
        return int(self._sequence(worker, ()).generate_state(1)[0])

    def __reduce__(self) -> tuple[Any, ...]:
        # Loaders pickle one copy for each worker that they start: its number tells the epoch.
        copy = self._copies.take() if self._copy is None else self._copy
        return WorkerSeeds, (self.root_seed, self.process_index, self.epoch, self._made, copy)

    def __copy__(self) -> "WorkerSeeds":
        return self

    def __deepcopy__(self, memo: Any) -> "WorkerSeeds":
        return self

    def _sequence(self, worker: int, fresh: tuple[int, ...]) -> "np.random.SeedSequence":
        import numpy as np

        number = parse_index("worker", worker)
        key = (self.process_index, self.epoch, number, *fresh)
        return np.random.SeedSequence(self.root_seed, spawn_key=key)

    def _fresh(self, worker_count: int | None) -> tuple[int, ...]:
        """Numbers that differ from one epoch's workers to the next's, and repeat in a rerun."""
        torch_seed = _torch_worker_seed()
        if torch_seed is not None:
            return (_TORCH, torch_seed)
        if worker_count and self._copy is not None:
            # Which worker gets which copy of its epoch, threads decide: only the epoch counts.
            return (_COPIES, self._made, self._copy // worker_count)
        return (_PROCESSES, *_process_numbers())


def seed_workers(
    seed: int | None = None,
    *,
    epoch: int = 0,
    process_index: int | None = None,
    started: int = 0,
) -> WorkerSeeds:
    """Makes the function that seeds data-loading workers.

    A worker starts with a copy of its parent's generators or with fresh ones: so workers repeat
    each other, each epoch repeats the last, or no run can be repeated. Pass the result as

    - ``worker_init_fn=`` of ``torch.utils.data.DataLoader``,
    - ``worker_init_fn=`` of grain's ``mp_prefetch``, one ``seed_workers()`` for each pipeline,
    - ``initializer=`` of ``multiprocessing.Pool`` or ``ProcessPoolExecutor``,

    and take ``.seed()`` where a number is wanted, as in tf.data. Worker ``w`` of process ``p``
    draws from ``np.random.SeedSequence(seed, spawn_key=(p, epoch, w, *fresh))``. ``fresh`` makes
    each new set of workers differ, and the same program run again repeats it: in a DataLoader it
    is the worker's seed, drawn from the loader's generator for each epoch; in grain the number
    of sets of workers that the pipeline has started; elsewhere the numbers of the worker in
    ``multiprocessing``, which counts all processes that its parent starts.

    A worker's generators live as long as the worker, and a run that goes on starts new ones. In
    grain, save ``seeds.started`` with the checkpoint and pass it as ``started=``: after whole
    epochs the workers then draw what they would have drawn without the interruption. Elsewhere
    the counts start again with the parent: a run that goes on at epoch ``e`` should pass
    ``epoch=e``, and a DataLoader's generator has a state of its own (``get_state()``). Inside a
    worker ``get_rng_state()`` and ``load_rng_state()`` save and restore its own generators.

    What it cannot do: a DataLoader without a ``generator=`` draws from PyTorch's global one:
    import torch before ``startup`` or ``seed_all``, which then seed it. The threads of a grain
    worker draw in no fixed order: give ``to_iter_dataset`` one,
    ``grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)``, or draw from the generator that
    ``random_map`` hands out. And which of a pool's workers takes which task is never fixed.

    Args:
        seed: The run's seed, an integer in [0, ``MAX_SEED``]; None takes ``root_seed()``.
        epoch: An integer in [0, 2**31 - 1]; other epochs are other streams.
        process_index: The process of the run, an integer in [0, 2**31 - 1]. None takes
            ``jax.process_index()`` where JAX runs, otherwise 0; no backend is started for it
            unless ``jax.distributed`` is initialized.
        started: The number of workers that were started before the run was interrupted, an
            integer in [0, 2**31 - 1]: what ``started`` of the interrupted run's seeds was.

    Returns:
        A picklable ``WorkerSeeds``; all is resolved here, and JAX is not imported in workers.

    Raises:
        TypeError: An argument is not an integer.
        ValueError: An argument is out of range.
        RuntimeError: ``seed`` is None and the process was not seeded yet.

    Example:
        >>> seeds = seed_workers(7, epoch=3)
        >>> seeds
        WorkerSeeds(root_seed=7, process_index=0, epoch=3)
        >>> from concurrent.futures import ProcessPoolExecutor
        >>> with ProcessPoolExecutor(initializer=seeds) as pool:  # starts no worker yet
        ...     pass

    Source:
        ``np.random.SeedSequence`` (O'Neill's ``seed_seq_fe``); PyTorch's "Randomness in
        multi-process data loading".
    """
    root = root_seed() if seed is None else parse_seed("seed", seed)
    process = this_process() if process_index is None else process_index
    made = (root, parse_index("process_index", process), parse_index("epoch", epoch))
    copies = _Count(parse_index("started", started))
    _MADE[made] += 1
    return WorkerSeeds(*made, _made=_MADE[made], _copies=copies)


def _torch_worker_seed() -> int | None:
    """The seed that a DataLoader's generator drew for this worker; None in no such worker."""
    worker_info = imported("torch.utils.data", "get_worker_info")
    info = worker_info() if worker_info else None
    return None if info is None else info.seed


def _process_numbers() -> tuple[int, ...]:
    """The numbers by which ``multiprocessing`` counts the processes on the way to this one.

    Python publishes them only in the name, ``SpawnProcess-1:2``, which the user may change.
    """
    import multiprocessing

    return multiprocessing.current_process()._identity  # pyright: ignore[reportAttributeAccessIssue]
