"""The row of worst pictures."""

import numpy as np
from highlight_diffusion.bench import worst
from PIL import Image


def test_the_worst_picture_of_a_strength_is_the_one_furthest_from_dense():
    rows = [
        {"method": "a", "setting": "1", "psnr": psnr, "prompt": prompt} for prompt, psnr in enumerate(("41.2", "9.5", "38"))
    ]
    rows.append({"method": "a", "setting": "2", "psnr": "5", "prompt": 7})
    found = worst.worst_of(rows, "a", "1")
    assert found is not None and found["prompt"] == 1, "compared as numbers, and with no other strength's"
    assert worst.worst_of(rows, "b", "1") is None


def test_the_row_is_a_picture_for_each_it_shows(tmp_path):
    dense = np.zeros((32, 32, 3))
    pictures = worst.pair(dense, dense + 0.1, 8, "fast")
    assert [caption for _, caption in pictures] == ["8 steps, dense", "fast, 20.0 dB"]
    worst.draw([pictures], tmp_path / "row.jpg")
    worst.draw([pictures * 2], tmp_path / "long.jpg")
    sizes = [Image.open(tmp_path / name).size for name in ("row.jpg", "long.jpg")]
    assert sizes[1][0] == 2 * sizes[0][0]
