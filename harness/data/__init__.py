"""External files: which there are, where they come from, where they lie, and whether they are what they should be."""

from harness.data.catalogue import DataFile, benchmarks, external_files
from harness.data.folder import DATA_VARIABLE, data_file, data_folder

__all__ = ["DATA_VARIABLE", "DataFile", "benchmarks", "data_file", "data_folder", "external_files"]
