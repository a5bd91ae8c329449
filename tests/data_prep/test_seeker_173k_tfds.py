"""TFDS's own test of a builder. It reads through tf.data and needs TensorFlow, which nothing else here does: `make test-tfds`
runs it in an environment of its own."""

from __future__ import annotations

import pytest

pytest.importorskip("tensorflow", reason="TFDS's builder test needs it (`make test-tfds`)")

import tensorflow_datasets as tfds

from data_prep.seeker_173k import Builder


class SeekerTest(tfds.testing.DatasetBuilderTestCase):
    """Builds the dummy data, reads it in eager mode, compares shapes and types, builds again."""

    DATASET_CLASS = Builder
    SPLITS = {"train": 7}  # noqa: RUF012


if __name__ == "__main__":
    tfds.testing.test_main()
