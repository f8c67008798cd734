"""The processes that train together, one on each GPU."""

import contextlib
import os

import torch
import torch.distributed as dist
from torch import nn


def rank():
    """Number of this process: 0 where it is the only one, and in the one that writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


def world():
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def quiet():
    """Arguments of tqdm: only process 0 shows bars."""
    return {"disable": True} if rank() > 0 else {}


def barrier():
    """Wait until all processes get here."""
    if dist.is_initialized():
        dist.barrier()


@contextlib.contextmanager
def processes(device):
    """Join the processes that `torchrun` started; yields the device of this one.

    They communicate by nccl on GPUs; by gloo on CPUs, and where several share a GPU, which nccl refuses.
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


def sum_over_processes(tensor):
    """A tensor's sum over the processes, in place; returns it."""
    if world() > 1:
        dist.all_reduce(tensor)
    return tensor


def synchronise_norms(network):
    """On GPUs, replace the batch norms of a network by ones over the batches of all processes; returns the network.

    Freeze layers only after this call, as they are new modules. PyTorch has no such layer for CPUs: there
    DistributedDataParallel sends process 0's statistics to all before each step, and `share_buffers` does so after the
    last one.
    """
    if world() > 1 and next(network.parameters()).device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return network


def share_buffers(network):
    """Give all processes process 0's buffers, the statistics of batch norms."""
    if world() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)
