"""Where a network runs: device, precision, memory layout, and the processes that train together."""

import contextlib
import os

import torch
import torch.distributed as dist
from torch import nn


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
