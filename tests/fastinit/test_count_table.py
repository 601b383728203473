"""The table of a count: equal modules take one row."""

import jax
import jax.numpy as jnp

import jinit


def blocks(key):
    """A model of twelve equal blocks, and of one that is larger."""
    made = {f"block_{number}": jnp.zeros((2, 3)) for number in range(12)}
    return {**made, "block_12": jnp.zeros((4, 3)), "head": jnp.zeros(5)}


def test_equal_modules_take_one_row_in_the_order_of_their_numbers():
    """Twelve of thirteen are alike; the sums stand in the row."""
    counted = jinit.count(blocks, jax.random.key(0))
    rows = [line.split("  ") for line in str(counted).splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert cells[2:6] == [
        ["block_0 to block_11: 12 alike", "72", "0", "288 B"],
        ["block_12", "12", "0", "48 B"],
        ["head", "5", "0", "20 B"],
        ["total", "89", "0", "356 B"],
    ]
    assert len(counted.modules) == 14


def test_two_equal_modules_keep_their_rows():
    """What is shorter than its own heading is written out."""
    text = str(jinit.count(lambda key: {"a_0": jnp.zeros(2), "a_1": jnp.zeros(2)}, 0))
    assert "alike" not in text
    assert "a_0" in text
    assert "a_1" in text
