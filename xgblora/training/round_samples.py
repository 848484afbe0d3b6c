"""`samples_of`: the training batches that a round's measured start looks at."""

from collections.abc import Iterator
from typing import Any

import torch

from xgblora.boosting import Samples
from xgblora.ops.noise import derive_seed
from xgblora.training.process_trainer import ProcessTrainer


def samples_of(trainer: ProcessTrainer, objective) -> Samples:
    """Batches of `trainer`'s training set, of examples of the round's own.

    They are drawn from (seed, round): a run that was resumed in the middle of a round looks at the same batches
    when the round ends, and the order of training stays what it is without.
    """

    def batches(round: int, examples: int) -> Iterator[dict[str, Any]]:
        # as many as a step runs at once, where it runs both signs
        data, size = trainer.train_dataset, 2 * trainer.args.per_device_train_batch_size
        generator = torch.Generator().manual_seed(derive_seed(trainer.args.seed, round))
        drawn = [data[index] for index in torch.randperm(len(data), generator=generator)[:examples].tolist()]
        if all(hasattr(example, "__len__") for example in drawn):
            # where batches are not packed, those of like length have little padding
            drawn.sort(key=len)
        for start in range(0, len(drawn), size):
            batch = trainer.data_collator(drawn[start : start + size])
            if isinstance(batch, dict) and "queries" in batch:
                # the last layer sees all positions, as every other layer does
                batch["queries"] = 0
            yield trainer._prepare_inputs(batch)

    return Samples(objective, batches, agreed=lambda start: trainer.agreed(start.cpu()).to(start.device))
