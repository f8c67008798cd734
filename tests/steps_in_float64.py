"""Print the loss of each step of one epoch in double precision; started by torchrun with one or two processes."""

import sys
import tempfile

import torch
import torch.distributed as dist

import data
import trainer
from model import CellClassifier, build_model

single_augment, single_step = trainer.augment, trainer.Trainer.train_step


def printed_step(self, images, labels, **more):
    loss = single_step(self, images, labels.double(), **more)
    total = loss.clone()
    if trainer.world() > 1:
        dist.all_reduce(total)
    if trainer.rank() == 0:
        print(repr(total.item()))
    return loss


trainer.augment = lambda *args: single_augment(*args).double()
trainer.Trainer.train_step = printed_step
CellClassifier.forward = lambda self, images: self.network(self.normalise(images))
with trainer.processes(torch.device("cpu")), tempfile.TemporaryDirectory() as folder:
    cells = data.read_table(sys.argv[1]).head(39)  # in batches of 8 and 7: unequal shares
    pictures, cells["picture"] = data.load_pictures(cells, 64)
    torch.manual_seed(0)
    model = build_model("resnet", width=16, image_size=64).double()
    rows = data.CellDataset(cells, pictures)
    trainer.Trainer(model, rows, rows, folder, batch_size=8, turns=True)._train_epoch()
