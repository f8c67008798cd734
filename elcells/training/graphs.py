"""CUDA graphs: a training step recorded once and replayed, so that the host starts one graph instead of 600 kernels."""

import torch


class GraphedStep:
    """A function recorded as a CUDA graph at its first batch; later batches are copied into that one's memory.

    step: function of keyword arguments (tensors on the GPU, or None) that returns a tensor there, without ever waiting
        for the GPU; it was run before, so that all it allocates but once is there.
    batch: dict of its arguments.
    Called with a dict of tensors of the same shapes, on any device, it returns step's result, in the same memory each
    time.
    """

    def __init__(self, step, batch):
        self.batch, self.graph = batch, torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.result = step(**batch)

    def __call__(self, batch):
        for name, value in batch.items():
            if value is not None:
                self.batch[name].copy_(value, non_blocking=True)
        self.graph.replay()
        return self.result
