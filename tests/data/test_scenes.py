"""Scenes: pure, made of disjoint digits, and described truthfully."""

from __future__ import annotations

import itertools

import numpy as np

from fedcmp.data.scenes import CAMERAS, CELL, COLOURS, POOLS, make_scene, named_digits, render


def test_a_scene_is_a_pure_function_and_pools_share_no_digit() -> None:
    spans = sorted(POOLS.values())
    assert (spans[0][0], spans[-1][1]) == (0, 1797)
    assert all(left[1] == right[0] for left, right in itertools.pairwise(spans))
    for pool, (first, last) in POOLS.items():
        assert all(first <= s < last for i in range(50) for s in make_scene(pool, "plain", i).sprites if s >= 0)
    for camera in CAMERAS:
        one, two = make_scene("val", camera, 3, seed=1), make_scene("val", camera, 3, seed=1)
        assert one == two != make_scene("val", camera, 3, seed=2)
        assert render(one).tobytes() == render(two).tobytes()
        assert render(make_scene("val", camera, 4, seed=1)).tobytes() != render(one).tobytes()


def test_captions_say_what_is_where_and_in_which_colour() -> None:
    for index in range(30):
        scene = make_scene("train", "plain", index)
        assert sorted(named_digits(scene.caption).values()) == sorted(digit for digit in scene.digits if digit >= 0)
        pixels = np.asarray(render(scene), np.float32)
        for place, colour in enumerate(scene.colours):
            row, column = divmod(place, 2)
            cell = pixels[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
            assert bool(cell.max() > 60) == bool(colour)
            if colour:
                brightest = cell.reshape(-1, 3)[cell.sum(-1).argmax()]
                assert min(COLOURS, key=lambda name: np.abs(np.array(COLOURS[name]) - brightest).sum()) == colour
