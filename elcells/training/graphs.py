"""Training steps on one GPU as CUDA graphs, and steps that are undone: recording a step takes a few to warm up."""

import contextlib
import copy
from dataclasses import replace

import torch

from elcells.devices import send

WARM_UP_STEPS = 3


@contextlib.contextmanager
def undone(network, optimizer):
    """Undo the steps inside at the end: weights, batch-norm statistics and optimiser, in the memory that they have."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    weights = copy.deepcopy(network.state_dict())
    states = copy.deepcopy([optimizer.state.get(p, {}) for p in parameters])
    yield
    network.load_state_dict(weights)
    for parameter, before in zip(parameters, states):
        for name, value in optimizer.state[parameter].items():
            if name in before:
                value.copy_(before[name])
            else:
                value.zero_()


def set_learning_rate(optimizer, rate):
    """Set the rate of all groups, times their own "rate", in the memory that it has where it is a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate * group["rate"])
        else:
            group["lr"] = rate * group["rate"]


class GraphedSteps:
    """A training step as CUDA graphs, one for each size of batch: the host starts one graph instead of 600 kernels.

    step: function of a Batch that returns a tensor on the GPU, without ever waiting for the GPU. network, optimizer:
    what it changes. device: the GPU.
    Called with a Batch, on any device, and a seed for dropout, it returns step's result, in the same memory each time.
    """

    def __init__(self, step, network, optimizer, device):
        self.step = step
        self.network = network
        self.optimizer = optimizer
        self.device = device
        self.recorded = {}  # size of a batch -> (graph, its batch, its result)
        self.move_learning_rate()

    def move_learning_rate(self):
        """Keep the learning rate as a tensor on the GPU, from where a recorded step reads it; again after a load."""
        for group in self.optimizer.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]), device=self.device)
            group["capturable"] = True

    def __call__(self, batch, seed):
        if len(batch) not in self.recorded:
            self.recorded[len(batch)] = self.record(batch)
        graph, recorded_batch, result = self.recorded[len(batch)]
        torch.manual_seed(seed)  # after a recording, which draws numbers too
        for name, value in batch.tensors().items():
            getattr(recorded_batch, name).copy_(value, non_blocking=True)
        graph.replay()
        return result

    def record(self, batch):
        """A step's graph, the batch whose memory it reads, and its result."""
        batch = replace(batch, **{name: send(value, self.device).clone() for name, value in batch.tensors().items()})
        self.warm_up(batch)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = self.step(batch)
        return graph, batch, result

    def warm_up(self, batch):
        """Take a few steps and undo them, so that all memory that is allocated only once is allocated."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with undone(self.network, self.optimizer):
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_STEPS):
                    self.step(batch)
            torch.cuda.current_stream().wait_stream(stream)
