"""The trainer's evaluation of a batch: losses, choices and labels, whatever the numbers of candidates are."""

import torch

from xgblora.evaluation import evaluate
from xgblora.objectives.texts import CandidateObjective, classification
from xgblora.scoring import Collator, encode
from xgblora.tasks import TASKS, Sample
from xgblora.training import XGBLoRAArguments, XGBLoRATrainer


def test_the_trainer_s_evaluation_of_batches_with_different_numbers_of_candidates(make_opt, tiny_tokenizer, tmp_path):
    """Scores below -100, which is what transformers fills a batch with fewer candidates up with."""
    opt = make_opt(vocab_size=len(tiny_tokenizer))
    words = ("great", "terrible", "slow", "a gem", "superb")
    samples = [
        Sample.of_choices("It was", [f"It was {word}" for word in words[:count]], 0, "x") for count in (2, 3, 5, 2)
    ]
    with torch.no_grad():
        opt.get_output_embeddings().weight.mul_(1000)
    expected = evaluate(opt, tiny_tokenizer, TASKS["Copa"], samples, max_length=64)
    right = [record.prediction for record in expected.records]
    assert max(map(max, (record.scores for record in expected.records))) < -100
    samples = [Sample(s.prompt, s.candidates, label, s.origin) for s, label in zip(samples, right, strict=True)]
    trainer = XGBLoRATrainer(
        opt,
        XGBLoRAArguments(
            output_dir=str(tmp_path), per_device_eval_batch_size=1, eval_strategy="no", use_cpu=True, disable_tqdm=True
        ),
        objective=CandidateObjective(opt, classification),
        data_collator=Collator(0),
    )
    output = trainer.predict([encode(sample, tiny_tokenizer, max_length=64) for sample in samples])
    assert output.predictions.tolist() == right == output.label_ids.tolist()
