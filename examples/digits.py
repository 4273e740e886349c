"""Write scikit-learn's handwritten digits to a file, the data set of the examples.

    python examples/digits.py output/digits.npz

It runs on the controller, whose environment (.venv) has scikit-learn. The machines have none.
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

TRAINING_DIGITS = 1400  # of the 1797 digits; the others are for tests


def write(path):
    """Write ``train_x``, ``train_y``, ``test_x``, ``test_y``, in a fixed random order, and return the path.

    x has the pixels from 0 to 1, shape (n, 64); y the digits from 0 to 9, shape (n,).
    """
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    x, y = (digits.data[order] / 16).astype("float32"), digits.target[order].astype("int64")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    train, test = slice(None, TRAINING_DIGITS), slice(TRAINING_DIGITS, None)
    np.savez(path, train_x=x[train], train_y=y[train], test_x=x[test], test_y=y[test])
    return path


if __name__ == "__main__":
    write(sys.argv[1])
