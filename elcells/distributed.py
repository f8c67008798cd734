"""Where a network runs: device, precision, memory layout, and the processes that train together."""

import contextlib
import os

import torch
import torch.distributed as dist
from torch import nn

from elcells.files import InputError


def rank():
    """Number of this process, 0 in the only one or the one that writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


def world():
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def quiet():
    """Arguments of tqdm: only process 0 shows bars."""
    return {"disable": True} if rank() > 0 else {}


def barrier():
    """Wait until all processes are here."""
    if dist.is_initialized():
        dist.barrier()


@contextlib.contextmanager
def processes(device):
    """Join the processes that `torchrun` started; yields the device of this one.

    They talk by nccl on GPUs, by gloo elsewhere and where several share a GPU, which nccl refuses.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield device
        return
    backend = "gloo"
    if device.type == "cuda":
        gpus = torch.cuda.device_count()
        backend = "nccl" if int(os.environ["LOCAL_WORLD_SIZE"]) <= gpus else "gloo"
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % gpus)
        torch.cuda.set_device(device)
    dist.init_process_group(backend)
    try:
        yield device
    finally:
        dist.destroy_process_group()


class SumOverProcesses(torch.autograd.Function):
    """A tensor's sum over all processes, and on the way back its gradient's, as each of them used the sum."""

    @staticmethod
    def forward(context, value):
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context, gradient):
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the batches of all processes, where PyTorch's own SyncBatchNorm can't run (CPU).

    (N, C, H, W) -> the same shape; in evaluation an ordinary batch norm.
    """

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        x32 = x.to(torch.promote_types(x.dtype, torch.float32))
        own = torch.tensor(float(x[:, 0].numel()), dtype=x32.dtype)
        count = SumOverProcesses.apply(own)
        own_var, own_mean = torch.var_mean(x32, (0, 2, 3), correction=0)
        mean = SumOverProcesses.apply(own_mean * (own / count))
        # Not the mean of squares less the squared mean, which loses digits where the mean is large.
        var = SumOverProcesses.apply((own_var + (own_mean - mean) ** 2) * (own / count))
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1), self.momentum)
        scale = self.weight * torch.rsqrt(var + self.eps)
        return torch.addcmul((self.bias - mean * scale)[:, None, None], x32, scale[:, None, None]).to(x.dtype)


def synchronised(module):
    """A network's batch norms replaced by ones over the batches of all processes, sharing its weights.

    On CUDA they are new modules: what is said of single ones (that they are frozen) must be said afterwards.
    """
    if next(module.parameters()).device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = SyncBatchNorm2d
    return module


def pick_device(name="auto"):
    """torch.device for "auto" (CUDA, then Apple's MPS, then CPU), "cpu", "cuda" or "mps"; InputError if not there.

    CUDA's convolutions are told to compute float32 as float32, not as TensorFloat-32, which has ten bits for the
    mantissa, and the same every time.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(d for d in ("cuda", "mps", "cpu") if there[d])
    if not there.get(name.split(":")[0]):
        raise InputError(f"device {name}: there is none that PyTorch can use here; take cpu")
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    return torch.device(name)


def pick_precision(name, device):
    """torch.dtype of a network's arithmetic for "auto", "fp32" or "bf16".

    "auto" is bfloat16 where the device is fast in it: CUDA with bfloat16, or a CPU with AVX512-BF16 or AMX.
    """
    if name == "auto" and device.type == "cpu":
        cpu = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        name = "bf16" if cpu.get("avx512_bf16") or cpu.get("amx_bf16") else "fp32"
    elif name == "auto":
        name = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(False) else "fp32"
    elif name == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        raise InputError("precision bf16: this GPU has no bfloat16; take fp32")
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]


def autocast(device, precision):
    """The context in which a network runs in `precision` (torch.float32: as it is)."""
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)


def send(tensor, device):
    """A tensor on `device`. A GPU fetches it from pinned memory while the program goes on; an ordinary copy would wait
    until the GPU has done all that it was given before."""
    import torch

    if tensor.device.type == "cpu" and torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def channels_last(images):
    """Gray images (N, 1, H, W) with the strides that make the first convolution's output channels_last.

    For one channel `.contiguous(memory_format=torch.channels_last)` leaves the strides alone, the network then runs
    its costliest layers, stem and max pool, in the other layout: ResNet-34 trains at three quarters of the speed.
    """
    return images.squeeze(1).unsqueeze(-1).permute(0, 3, 1, 2)
