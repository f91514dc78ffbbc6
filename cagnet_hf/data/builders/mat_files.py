"""Masks in MATLAB files, read with scipy, which only these need."""

import io
from collections.abc import Callable

import numpy as np

from ..examples import encode_mask
from ..samples import BrokenFileError, File, MadeFile


def mat_mask(
    file: File,
    find: Callable[[dict], np.ndarray],
    to_stored_ids: Callable[[np.ndarray, str], np.ndarray] = lambda labels, _name: labels,
) -> MadeFile:
    """A `.mat` file as a PNG of stored ids.

    Args:
        file: The file.
        find: The label map `(H, W)` among the file's variables.
        to_stored_ids: From the labels of the file, and what to call it in an error.
    """

    def read_bytes() -> bytes:
        data = file.read_bytes()
        try:
            labels = find(import_loadmat()(io.BytesIO(data)))
        except Exception as error:  # scipy ends a damaged file in errors of every kind
            raise BrokenFileError(f"{file}: not a whole .mat file with a label map") from error
        if labels.ndim != 2 or labels.dtype.kind != "u":
            raise BrokenFileError(f"{file}: its label map is {labels.dtype} of shape {labels.shape}")
        return encode_mask(to_stored_ids(labels, str(file)))

    return MadeFile(str(file), read_bytes)


def import_loadmat() -> Callable:
    """`scipy.io.loadmat`, or an error that says how to get it."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise ValueError(".mat files are read with scipy: pip install 'cagnet-hf[data]'") from None
    return loadmat
