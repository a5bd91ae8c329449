"""The data set Seeker-173K for TFDS: annotations and references to videos, in ArrayRecord files."""

from data_prep.seeker_173k.seeker_173k_dataset_builder import Builder

__all__ = ["Builder"]
