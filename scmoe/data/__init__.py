"""Files in, MuData out: the four data sets, the user's own, and the fitted transform."""

from scmoe.data.catalog import DATASETS, Dataset, list_datasets
from scmoe.data.check import DataError, check
from scmoe.data.dyngen import simulate_dyngen
from scmoe.data.read import read
from scmoe.data.split import Split, load, load_simulated, split_mudata
from scmoe.data.transform import Transform
from scmoe.data.write import check_writable, write

__all__ = [
    "DATASETS",
    "DataError",
    "Dataset",
    "Split",
    "Transform",
    "check",
    "check_writable",
    "list_datasets",
    "load",
    "load_simulated",
    "read",
    "simulate_dyngen",
    "split_mudata",
    "write",
]
