"""External files: which there are, where they come from, where they lie, and whether they are what they should be."""

from harness.data.external import DATA_VARIABLE, DataFile, benchmarks, data_file, data_folder, external_files, missing

__all__ = ["DATA_VARIABLE", "DataFile", "benchmarks", "data_file", "data_folder", "external_files", "missing"]
