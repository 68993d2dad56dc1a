"""scikit-learn's 8x8 handwritten digits: small, and there without a network."""

import numpy as np

from bayesian_active_learning.data_utils.dataset import (
    DataError,
    Dataset,
    from_two_parts,
    row_digests,
    stratified_test,
)

TEST_FRACTION = 0.3


def load_digits() -> Dataset:
    """1,797 images [8, 8, 1] of ten classes, values 0..16 divided by 16.

    Train and test are fixed: of each class the last 30 % by digest of its content are
    test rows (see `stratified_test`), 1,258 and 539 in all. This is not MNIST.

    Raises:
      DataError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise DataError(
            "digits come with scikit-learn, which is not installed: pip install scikit-learn "
            "(part of 'bayesian_active_learning[experiments]')"
        ) from error
    bunch = datasets.load_digits()
    images = bunch.images.astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    test = stratified_test(labels, row_digests(images, labels), TEST_FRACTION)
    return from_two_parts(
        "digits",
        (images[~test], labels[~test]),
        (images[test], labels[test]),
        num_classes=10,
        divisor=16.0,
        scaling="0..16 / 16",
        sort=True,
    )
