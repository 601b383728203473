"""Pools whose workers seed themselves: run as a program, it prints what each worker draws."""

import functools
import json
import multiprocessing
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from jinit.reproducibility import seed_workers

METHODS = ("fork", "forkserver", "spawn")


@functools.cache
def first_draws():
    import numpy as np

    return random.random(), np.random.random(), random.gauss(0, 1), "jax" in sys.modules


def draw(_):
    time.sleep(0.01)
    return multiprocessing.current_process().name, first_draws()


def pool_draws(pool):
    """What each of two workers draws first, in the order in which they were started."""
    drawn = {}
    while len(drawn) < 2:
        drawn.update(pool.map(draw, range(8)))
    return [drawn[name] for name in sorted(drawn, key=lambda name: int(name.split("-")[-1]))]


def main():
    seeds, draws = seed_workers(7), {}
    for method in METHODS:
        context = multiprocessing.get_context(method)
        for epoch in range(2):
            with context.Pool(2, initializer=seeds) as pool:
                draws[f"{method} {epoch}"] = pool_draws(pool)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context, initializer=seed_workers(7)) as executor:
        draws["executor"] = pool_draws(executor)
    print(json.dumps(draws))


if __name__ == "__main__":
    main()
