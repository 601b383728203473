"""Epochs of grain pipelines whose workers seed themselves: run as a program, it prints them."""

import json
import random

import grain
import numpy as np
from absl import flags

from jinit.reproducibility import seed_workers


def draw(_):
    return float(np.random.random()), random.random()


def pipeline(workers):
    options = grain.multiprocessing.MultiprocessingOptions(num_workers=workers)
    return (
        grain.MapDataset.range(4)
        .map(draw)
        .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
        .mp_prefetch(options, worker_init_fn=seed_workers(7))
    )


def epoch(dataset):
    iterator = iter(dataset)
    try:
        return list(iterator)
    finally:
        iterator.close()


def main():
    flags.FLAGS.mark_as_parsed()
    training, evaluation = pipeline(2), pipeline(1)
    draws = [epoch(dataset) for dataset in (training, evaluation, training)]
    print(json.dumps(dict(zip(("first", "evaluation", "second"), draws, strict=True))))


if __name__ == "__main__":
    main()
