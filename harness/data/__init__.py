"""Preference triples, references to models and SAEs, and external files."""

from harness.data.external import DATA_VARIABLE, DataFile, benchmarks, data_file, data_folder, external_files, missing
from harness.data.refs import ModelRef, SAERef
from harness.data.triples import Triple, conversation, load_triples

__all__ = [
    "DATA_VARIABLE",
    "DataFile",
    "ModelRef",
    "SAERef",
    "Triple",
    "benchmarks",
    "conversation",
    "data_file",
    "data_folder",
    "external_files",
    "load_triples",
    "missing",
]
