"""Masks in MATLAB files, read with scipy, which only these need."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .examples import BrokenFileError, File, encode_mask


@dataclass(frozen=True)
class MatMask:
    """A `.mat` file that reads as a PNG of stored ids.

    Args:
        file: The file.
        find: The label map `(H, W)` among the file's variables.
        to_stored_ids: From the labels of the file, and what to call it in an error.
    """

    file: File
    find: Callable[[dict], np.ndarray]
    to_stored_ids: Callable[[np.ndarray, str], np.ndarray]

    def __str__(self) -> str:
        return str(self.file)

    def read_bytes(self) -> bytes:
        data = self.file.read_bytes()
        try:
            labels = self.find(import_loadmat()(io.BytesIO(data)))
        except Exception as error:  # scipy ends a damaged file in errors of every kind
            raise BrokenFileError(f"{self}: not a whole .mat file with a label map") from error
        if labels.ndim != 2 or labels.dtype.kind != "u":
            raise BrokenFileError(f"{self}: its label map is {labels.dtype} of shape {labels.shape}")
        return encode_mask(self.to_stored_ids(labels, str(self)))


def import_loadmat() -> Callable:
    """`scipy.io.loadmat`, or an error that says how to get it."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise ValueError(".mat files are read with scipy: pip install 'cagnet-hf[data]'") from None
    return loadmat
