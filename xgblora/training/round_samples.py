"""`samples_of`: the training batches that a round's measured start looks at."""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import Trainer

from xgblora.boosting import Samples
from xgblora.ops.noise import derive_seed


def samples_of(trainer: Trainer, objective) -> Samples:
    """Batches of `trainer`'s training set, once through in an order of the round's own.

    The order is drawn from (seed, round): a run that was resumed in the middle of a round looks at the same batches
    when the round ends, and the order of training stays what it is without.
    """

    def batches(round: int) -> Iterator[dict[str, Any]]:
        data, size = trainer.train_dataset, trainer.args.per_device_train_batch_size
        generator = torch.Generator().manual_seed(derive_seed(trainer.args.seed, round))
        order = torch.randperm(len(data), generator=generator).tolist()
        for start in range(0, len(order), size):
            batch = trainer.data_collator([data[index] for index in order[start : start + size]])
            yield trainer._prepare_inputs(batch)

    return Samples(objective, batches)
