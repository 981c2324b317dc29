"""Rows of a comparison on disk, so that one that was stopped goes on: FOLDER/KEY.npz.

The key is a digest of all that decides a row: other settings find nothing, and no row is taken for another.
"""

import dataclasses
import hashlib
import io
import json
import zipfile
import zlib
from pathlib import Path

import numpy as np

from guided_diffusion import files

from .pictures import Row


def key_of(decisive):
    """The name of a row's file.

    :param decisive: what decides the row, as JSON can hold it.
    """
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def digest_of_code():
    """A digest of the packages that make images and compare them, so that an edited solver makes its rows anew."""
    sources = sorted(Path(files.__file__).parent.rglob("*.py")) + sorted(Path(__file__).parents[1].rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def load(folder, key):
    """The Row that was saved under a key; None where there is none, or none that can be read."""
    path = files.join(folder, f"{key}.npz")
    if not files.exists(path):
        return None
    try:
        with np.load(io.BytesIO(files.read_bytes(path)), allow_pickle=False) as saved:
            return Row(**json.loads(str(saved["values"])), images=saved["images"])
    except (ValueError, KeyError, TypeError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile):
        return None


def save(folder, key, row):
    """Write a Row under its key; the file is there whole or not at all."""
    values = {field.name: getattr(row, field.name) for field in dataclasses.fields(row) if field.name != "images"}
    files.make_folder(folder)
    files.write_npz(files.join(folder, f"{key}.npz"), {"values": np.array(json.dumps(values)), "images": row.images})
