"""Scikit-learn's handwritten digits as a file that programs on the machines read: the machines have no scikit-learn."""

import numpy as np
from sklearn.datasets import load_digits

TRAINED_WITH = 1400  # of the 1797 digits; the others are held out


def write(path):
    """Write ``train_x``, ``train_y``, ``test_x``, ``test_y``, in a fixed random order, and return the path.

    x has the pixels from 0 to 1, shape (n, 64); y the digits from 0 to 9, shape (n,).
    """
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    x, y = (digits.data[order] / 16).astype("float32"), digits.target[order].astype("int64")
    arrays = {"train_x": x[:TRAINED_WITH], "train_y": y[:TRAINED_WITH], "test_x": x[TRAINED_WITH:], "test_y": y[TRAINED_WITH:]}
    np.savez(path, **arrays)
    return path
