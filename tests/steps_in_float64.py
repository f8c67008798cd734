"""Print the loss of each step of one epoch in double precision; started by torchrun with one or two processes."""

import sys
import tempfile

import torch
import torch.distributed as dist

import data
import trainer
from elcells.data.cache import load_images
from elcells.distributed import processes, rank, world
from elcells.training.augmentation import augment
from elcells.training.synthetic import SyntheticDefects
from model import CellClassifier, build_model

single_augment, single_step = augment, trainer.Trainer.train_step


def printed_step(self, images, labels, **more):
    loss = single_step(self, images, labels.double(), **more)
    total = loss.clone()
    if world() > 1:
        dist.all_reduce(total)
    if rank() == 0:
        print(repr(total.item()))
    return loss


def in_double(self, images):
    logits, features = self.features(images)
    return logits, self.head(features)


def augment_in_double(*args):
    return single_augment(*args).double()


trainer.augment = augment_in_double
trainer.Trainer.train_step = printed_step
trainer.WithAuxiliaryHead.forward = in_double
CellClassifier.forward = lambda self, images: self.network(self.normalise(images))
with processes(torch.device("cpu")), tempfile.TemporaryDirectory() as folder:
    cells = data.read_table(sys.argv[1]).head(39)  # in batches of 8 and 7: unequal shares
    images, cells["image"] = load_images(cells, 64)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    model = build_model("resnet", width=16, image_size=64)
    rows = data.CellDataset(cells, images)
    defects = SyntheticDefects(size=64, counts={"crack": 9, "inactive": 9, "distractor": 9})
    options = {
        "batch_size": 8,
        "dihedral": True,
        "synthetic": 0.5,
        "aux_loss": 1.0,
        "defects": defects,
        "noise_std": 15,
    }
    run = trainer.Trainer(model, rows, rows, folder, **options)
    torch.set_default_dtype(torch.float32)
    run._train_epoch()
