"""Slots: what is written where, what rows see, and that growing, shrinking and moving keep it."""

import torch

from cac_align.vlm.engine.slots import SlotCache


def write(cache, rows, columns, value, **aim):
    """Write ``value`` (plus the row's number) as keys, its negative as values; returns what the rows see."""
    columns = torch.tensor(columns)
    keys = torch.full((len(rows), 2, columns.shape[1], 3), float(value)) + torch.arange(len(rows))[:, None, None, None]
    cache.aim(rows, columns, **aim)
    return cache.update(keys, -keys, 0)


def test_rows_of_different_lengths_are_written_at_their_own_columns():
    cache = SlotCache(1)
    cache.reserve(3, 6)
    keys, values = write(cache, [0, 1, 2], [[0, 1], [0, 1], [0, 1]], 10, from_start=True)
    assert keys.shape == (3, 2, 2, 3) and torch.equal(values, -keys)
    keys, _ = write(cache, [0, 1, 2], [[2], [1], [4]], 50)
    assert keys.shape[2] == 5  # the first columns up to the last one written
    assert keys[:, 0, :, 0].tolist() == [[10, 10, 50, 0, 0], [11, 51, 0, 0, 0], [12, 12, 0, 0, 52]]


def test_some_slots_in_any_order_see_their_own():
    cache = SlotCache(1)
    cache.reserve(3, 4)
    write(cache, [0, 1, 2], [[0], [0], [0]], 1, from_start=True)
    keys, _ = write(cache, [2, 0], [[1], [1]], 70)
    assert keys[:, 0, :, 0].tolist() == [[3, 70], [1, 71]]


def test_growing_shrinking_and_moving_keep_what_is_held():
    cache = SlotCache(1)
    cache.reserve(2, 3)
    write(cache, [0, 1], [[0, 1, 2]] * 2, 5, from_start=True)
    cache.reserve(2, 4)
    assert (cache.num_slots, cache.num_columns) == (2, 4)
    cache.reserve(3, 100)
    assert (cache.num_slots, cache.num_columns) == (3, 100)
    cache.reserve(1, 101)
    assert cache.num_columns == 125  # a quarter more, not one
    cache.move(1, 0, 2)
    cache.resize(1, 3)
    assert cache.layers[0].keys[0, 0, :, 0].tolist() == [6, 6, 5] and cache.layers[0].values.shape == (1, 2, 3, 3)


def test_memory_that_ends_between_two_layers_leaves_a_cache_that_can_try_again():
    cache = SlotCache(2)
    cache.reserve(1, 2)
    for layer in (0, 1):
        cache.aim([0], torch.tensor([[0]]), from_start=True)
        cache.update(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), layer)
    cache.layers[0].resize(1, 8)  # as if the second layer's allocation had failed
    cache.reserve(1, 6)
    assert [layer.keys.shape[2] for layer in cache.layers] == [6, 6] and cache.num_columns == 6
