"""Networks as Engines: an ONNX file, or a checkpoint, which alone needs PyTorch."""

import functools
import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from elcells.files import InputError, needed
from elcells.inference.class_maps import weighted
from elcells.inference.engine import Engine, Look
from elcells.inference.onnx_files import is_onnx, open_model
from elcells.inference.origin import TRAINING
from elcells.inference.small import lowered, small_side

SHIPPED = Path(__file__).resolve().parents[2] / "cells.onnx"


@dataclass(frozen=True)
class Network:
    """Which network judges, and how; `open_network` opens it.

    path: str of an ONNX file or checkpoint. device: auto, cpu or cuda. threads: of an ONNX file, as `open_model` takes
    them. batch_size: images at a time. operating_point: which thresholds are taken. maps: whether it
    makes class maps too.
    """

    path: str
    device: str = "auto"
    threads: int | None = None
    batch_size: int = 16
    operating_point: str = "f1"
    maps: bool = False

    def __post_init__(self):
        if self.batch_size < 1:
            raise InputError(f"batch_size {self.batch_size}: must be at least 1")
        if self.threads is not None and self.threads < 0:
            raise InputError(f"threads {self.threads}: must be 0 (all) or more")

    def sha256(self):
        """Of the file."""
        return hashlib.sha256(Path(self.path).read_bytes()).hexdigest()


@functools.lru_cache(maxsize=1)
def shipped_sha256():
    """The SHA-256 of the network that comes along; "" where it is missing."""
    return Network(str(SHIPPED)).sha256() if SHIPPED.exists() else ""


def default_path():
    """Path of the newer of onnx/best.onnx and checkpoints/best.ckp, else the shipped network; and why, for the user."""
    paths = [path for path in (Path("onnx/best.onnx"), Path("checkpoints/best.ckp")) if path.exists()]
    if not paths:
        return SHIPPED, " (there is no onnx/best.onnx nor checkpoints/best.ckp here)"
    paths.sort(key=lambda path: path.stat().st_mtime_ns)
    if len(paths) == 2:
        return paths[1], f" (newer than {paths[0]})"
    return paths[0], ""


@functools.lru_cache(maxsize=2)
def open_network(network):
    """The Engine of a Network; the same one when it is asked for again."""
    path = Path(network.path)
    if not is_onnx(path):
        if network.threads:
            raise InputError(f"{path}: PyTorch runs a checkpoint; threads are for ONNX files")
        engine = open_checkpoint(path, network.device, network.maps)
    else:
        engine = open_model(path, network.threads or 0, network.device, network.maps)
    return replace(engine, batch_size=network.batch_size)


def open_checkpoint(path, device, maps):
    """Open a checkpoint as an Engine; maps: whether it makes class maps too."""
    torch = needed("torch")
    from elcells.devices import keep_freed_memory, pick_device

    load_model = needed("model").load_model  # the library knows nothing on top, but a checkpoint's network lies there
    keep_freed_memory()
    device = pick_device(device)
    model, checkpoint = load_model(path, device)
    model = model.to(memory_format=torch.channels_last)
    small_size = small_side(model.metadata.image_size)
    operating_points = model.calibration_for().operating_points
    map_layer = model.network.get_submodule(model.kind.map_layers[-1])

    @torch.inference_mode()
    def look(images):
        features = []
        with map_layer.register_forward_hook(lambda layer, inputs, output: features.append(output)):
            logits = model(torch.from_numpy(images).to(device))
        probabilities = lowered(model.probabilities(logits).cpu().numpy(), images, small_size)
        weight = model.network.fc.weight
        class_maps = weighted(features[0].float().cpu().numpy(), weight.float().cpu().numpy()) if maps else None
        can_be_followed = model.lines is not None and images.shape[-1] == model.metadata.image_size
        follow_lines = (lambda number: lines_in(images[number])) if can_be_followed else None
        return Look(probabilities, class_maps, follow_lines)

    @torch.inference_mode()
    def lines_in(image):
        [[lines]] = model.crack_lines(torch.from_numpy(image[None]).to(device)).cpu().numpy()
        return lines

    metadata = asdict(model.metadata) | {k: v for k, v in checkpoint.items() if k in TRAINING}
    name = f"pytorch on {device.type}"
    return Engine(
        look,
        model.classes,
        model.metadata.image_size,
        name,
        operating_points,
        has_lines=model.lines is not None,
        small_size=small_size,
        metadata=metadata,
    )
