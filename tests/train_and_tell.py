"""train.py, whose processes each print how many cells they trained on and a hash of their weights; for torchrun."""

import hashlib
import sys

import train
from elcells.distributed import rank
from elcells.training import synthetic
from trainer import Trainer

cells = 0
train_step = Trainer.train_step
fit = Trainer.fit


def counted_step(self, batch):
    global cells
    cells += len(batch)
    return train_step(self, batch)


def fit_and_tell(self, on_epoch=None):
    done = fit(self, on_epoch)
    digest = hashlib.sha256()
    for tensor in self.model.network.state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    print(f"rank {rank()}: {cells} cells, weights {digest.hexdigest()}", file=sys.__stdout__, flush=True)
    return done


synthetic.COUNTS = dict.fromkeys(synthetic.COUNTS, 9)  # drawn in no time
Trainer.train_step = counted_step
Trainer.fit = fit_and_tell
raise SystemExit(train.main())
