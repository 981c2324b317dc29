"""Where the weights of the Inception network are, and what they are: found, downloaded, checked, loaded."""

import hashlib
import os
import tempfile
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import NamedTuple

import torch
from tqdm.auto import tqdm

from guided_diffusion import dist_util, files, logger
from guided_diffusion.errors import UserError
from guided_diffusion.tensor_files import load_state_dict

from . import frozen_graph
from .inception import Inception

TIMEOUT = 30  # seconds without an answer


class Published(NamedTuple):
    """A published weight file; all hold the same network."""

    name: str
    address: str
    sha256: str


TORCH_FILE = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
PUBLISHED = [
    Published(
        "pt_inception-2015-12-05-6726825d.pth",
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        TORCH_FILE,
    ),
    Published(
        "weights-inception-2015-12-05-6726825d.pth",
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        TORCH_FILE,
    ),
    Published(
        "classify_image_graph_def.pb",
        "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/classify_image_graph_def.pb",
        "009d6814d1bc560d4e7b236e170e9b2d5ca6f4b57bd8037f6db05776204415c6",
    ),
]


def load(path=""):
    """The Inception network in eval mode on the CPU, and the sha256 of its weights.

    Every rank calls this. The hash is of names and numbers, so both file formats have the same.

    :param path: of a state dict as pytorch-fid publishes it or of the frozen graph; "" looks for it, see `find`.
    :raises UserError: if there is no file, or another network in it.
    """
    # the first rank of a host may download; the others find what it did
    if dist_util.local_rank() > 0:
        dist_util.barrier()
    path = find(path)
    if dist_util.local_rank() == 0:
        dist_util.barrier()
    data = files.read_bytes(path)
    if data.startswith((b"PK", b"\x80")):
        state = load_state_dict(path)
    else:
        state = frozen_graph.read(data, path)
    state = {name: value.float() for name, value in state.items() if not name.endswith("num_batches_tracked")}
    network = Inception().eval()
    _expect_shapes(state, network, path)
    network.load_state_dict(state)
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 not in {file.sha256 for file in PUBLISHED}:
        logger.warn(f"{path} is no published Inception file: numbers compare only with others of these weights")
    return network, hash_of(state)


def _expect_shapes(state, network, path):
    shapes = {k: v.shape for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    strange = [name for name in shapes | state if name not in shapes or name not in state]
    if strange:
        how = "it lacks" if strange[0] in shapes else "it has beyond that"
        raise UserError(f"Inception weights {path} are another network's: {how} {strange[0]}")
    for name, shape in shapes.items():
        if state[name].shape != shape:
            raise UserError(
                f"Inception weights {path} are another network's: {name} is {tuple(state[name].shape)}, "
                f"not {tuple(shape)}"
            )


def hash_of(state):
    """sha256 in hexadecimal over names, types, shapes and numbers of a state dict, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = state[name].contiguous().numpy()
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(array)
    return digest.hexdigest()


def find(path=""):
    """Where the weights are: `path`, else $INCEPTION_WEIGHTS, else in a usual folder, else downloaded there.

    :raises UserError: if there are none.
    """
    for source, given in (("--inception", path), ("$INCEPTION_WEIGHTS", os.environ.get("INCEPTION_WEIGHTS"))):
        if given and (not files.exists(given) or files.is_folder(given)):
            raise UserError(f"{source} {given} is not a file; expected {PUBLISHED[0].name} or {PUBLISHED[-1].name}")
        if given:
            return given
    places = [os.path.join(folder, file.name) for folder in _folders() for file in PUBLISHED]
    return next(filter(os.path.exists, places), None) or _download()


def _folders():
    """Where pytorch-fid and torch-fidelity keep the weights, and where the original evaluator does."""
    return [os.path.join(torch.hub.get_dir(), "checkpoints"), os.curdir, tempfile.gettempdir()]


def _download():
    folder, reasons = _folders()[0], []
    files.make_folder(folder)
    for file in PUBLISHED:
        path = os.path.join(folder, file.name)
        logger.log(f"downloading {file.address} into {folder}")
        try:
            fetch(file, path)
        except (OSError, HTTPException) as error:
            reasons.append(error)
        else:
            return path
    raise UserError(
        f"no Inception weights were found, and downloading failed ({reasons[0]}): put {PUBLISHED[0].address} "
        f"into {folder}, or give the path of it or of {PUBLISHED[-1].name} as --inception"
    )


def fetch(file, path):
    """Download a Published file to a local path, with a progress bar, unless its checksum is another.

    :raises OSError: or HTTPException, if it cannot be had; nothing is left then.
    """
    unfinished, digest = files.unfinished_name(path), hashlib.sha256()
    try:
        with urllib.request.urlopen(file.address, timeout=TIMEOUT) as source, open(unfinished, "wb") as target:
            size = int(source.headers.get("Content-Length", 0)) or None
            with tqdm(total=size, unit="B", unit_scale=True, desc=file.name) as bar:
                while part := source.read(2**20):
                    target.write(part)
                    digest.update(part)
                    bar.update(len(part))
        if digest.hexdigest() != file.sha256:
            raise OSError(f"came with the sha256 {digest.hexdigest()}, expected {file.sha256}")
        os.replace(unfinished, path)
    except urllib.error.HTTPError as error:
        error.close()  # it holds the connection
        raise
    finally:
        if os.path.exists(unfinished):
            os.remove(unfinished)
