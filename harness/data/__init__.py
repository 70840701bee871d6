"""Preference triples, references to models and SAEs, and external files."""

from harness.data.external import data_file, data_folder

__all__ = ["data_file", "data_folder"]
