"""Where a network runs: device, precision, memory layout, and how tensors get there."""

import contextlib
import ctypes

import torch

from elcells.files import InputError


def pick_device(name="auto"):
    """torch.device for "auto" (CUDA where there is one, else the CPU), "cpu", "cuda" or "mps"; InputError if not there.

    CUDA's convolutions are told to compute float32 as float32, not as TensorFloat-32, which has ten bits for the
    mantissa, and the same every time.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = "cuda" if available["cuda"] else "cpu"
    if not available.get(name.split(":")[0]):
        raise InputError(f"--device {name}: there is none that PyTorch can use here; give --device cpu")
    if name == "mps":
        print("device mps: nobody has tried this project on Apple's GPUs; compare its results with --device cpu")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    return torch.device(name)


def pick_precision(name, device):
    """torch.dtype of a network's arithmetic for "auto", "fp32" or "bf16".

    "auto" is bfloat16 where the device is fast in it: CUDA with bfloat16, or a CPU with AVX512-BF16 or AMX.
    """
    if name == "auto" and device.type == "cpu":
        name = "bf16" if cpu_has("avx512_bf16", "amx_bf16") else "fp32"
    elif name == "auto":
        name = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(False) else "fp32"
    elif name == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        raise InputError("--precision bf16: this GPU has no bfloat16; give --precision fp32")
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]


def cpu_has(*features):
    """Whether the processor has one of these features, by PyTorch's names; False where that is not known."""
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(known.get(feature) for feature in features)


def autocast(device, precision):
    """The context in which a network runs in `precision` (torch.float32: as it is)."""
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)


def send(tensor, device):
    """A tensor on `device`. A GPU fetches it from pinned memory while the program goes on; an ordinary copy would wait
    until the GPU has done all that it was given before."""
    if tensor.device.type == "cpu" and torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def channels_last(images):
    """Gray images (N, 1, H, W) with the strides that make the first convolution's output channels_last.

    For one channel `.contiguous(memory_format=torch.channels_last)` leaves the strides alone. The network then runs
    its costliest layers, stem and max pool, in the other layout: ResNet-34 trains at three quarters of the speed.
    """
    return images.squeeze(1).unsqueeze(-1).permute(0, 3, 1, 2)


def keep_freed_memory():
    """Tell glibc's allocator to keep freed memory: else the system clears the same pages anew in every step.

    Worth 5 to 8 % of a training step on a CPU when it was measured. Does nothing on other systems.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8  # of malloc.h
        for parameter, value in ((m_mmap_max, 0), (m_trim_threshold, 2**31 - 1), (m_arena_max, 1)):
            mallopt(parameter, value)
