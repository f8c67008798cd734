"""Checkpoint files: written whole or not at all, read without running any code that they may carry."""

import io
import os
import pickle
import warnings
from pathlib import Path

import torch

from elcells.files import InputError, atomic_path, reason

IMAGE_STARTS = (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"BM", b"RIFF", b"P5")
FIRST_CONVOLUTIONS = {"conv1.weight", "stem.0.weight"}


def write_checkpoint(path, checkpoint):
    """Write a checkpoint's dict to a file that is complete on the disk before it gets its name; OSError if it can't."""
    buffer = io.BytesIO()  # torch.save itself reports a full disk by a RuntimeError
    torch.save(checkpoint, buffer)
    with atomic_path(path) as temporary:
        with open(temporary, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())  # else the name may survive a power cut, and the bytes may not


def read_checkpoint(path):
    """Read a checkpoint file as a dict on the CPU, without running any code that it may carry.

    Raises InputError for a file that is missing, damaged or no checkpoint.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such checkpoint; train one with `python train.py`")
    try:
        with warnings.catch_warnings():  # about the pickle protocol of other programs' files, which are refused below
            warnings.simplefilter("ignore")
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and tensor readers raise many kinds for a damaged file
        raise InputError(f"{path}: {what_else(path, error)}") from None
    if not isinstance(checkpoint, dict) or not checkpoint:
        raise InputError(f"{path}: not a checkpoint (a {type(checkpoint).__name__}); train one with `python train.py`")
    return checkpoint


def what_else(path, error):
    """What a file is that PyTorch could not read as a checkpoint, and what to give instead, in words.

    error: PyTorch's. It may advise to load the file unsafely, which is not passed on.
    """
    with open(path, "rb") as file:
        start = file.read(100)
    if Path(path).suffix.lower() == ".onnx" or (start[:1] == b"\x08" and start[2:3] == b"\x12"):
        return "an ONNX file, but a checkpoint is wanted; give checkpoints/best.ckp"
    if start.startswith(IMAGE_STARTS):
        return "an image, but a checkpoint is wanted; give checkpoints/best.ckp"
    detail = reason(error)
    if not start:
        detail = "it is empty"
    elif start.isascii() and b"\0" not in start:
        detail = "it holds text"
    elif isinstance(error, pickle.UnpicklingError) or "weights_only" in detail:
        detail = "it is of another program or could run code, so it is not loaded"
    elif "central directory" in detail:  # which is at the end of a checkpoint
        detail = "its end is missing"
    return f"damaged or no checkpoint ({detail}); give one of `python train.py`"


def network_state(checkpoint):
    """The network's state dict in a checkpoint of ours, of the original recipe, or in a plain torchvision file.

    A first convolution over three channels becomes one over a gray image: its weights summed are exactly the same
    function of three equal channels. Returns {} where there is no state dict.
    """
    state = checkpoint.get("model", checkpoint.get("state_dict", checkpoint))
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        return {}
    for prefix in ("module.", "_orig_mod."):  # of DistributedDataParallel and torch.compile
        state = {k.removeprefix(prefix): v for k, v in state.items()}
    state = {k.replace("fc.0.", "fc."): v for k, v in state.items()}
    for name in FIRST_CONVOLUTIONS & state.keys():
        if state[name].ndim == 4 and state[name].shape[1] == 3:
            state[name] = state[name].sum(1, keepdim=True)
    return state


def find_checkpoint(name):
    """Path of a checkpoint named as people do: "best", "last", an epoch's number (3: checkpoint_003.ckp), or a path.

    Raises InputError, listing those in checkpoints/, where there is none.
    """
    folder = Path("checkpoints")
    name = str(name)
    if name.isdigit():
        path = folder / f"checkpoint_{int(name):03}.ckp"
    elif name in ("best", "last"):
        path = folder / f"{name}.ckp"
    else:
        path = Path(name)
    if not path.is_file():
        paths = sorted(folder.glob("*.ckp")) or sorted(folder.glob("fold_*/best.ckp"))  # of a cross-validation
        existing = ", ".join(p.relative_to(folder).as_posix() for p in paths) or "none"
        raise InputError(f"{path}: no such checkpoint ({folder} has: {existing}); train one with `python train.py`")
    return path
