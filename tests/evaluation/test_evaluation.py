"""`evaluate`: metrics, records, demonstrations and calibration, and a model that is left as it was."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from xgblora.errors import InputError
from xgblora.evaluation import Evaluation, Record, evaluate
from xgblora.evaluation.demonstrations import in_context, without_question
from xgblora.tasks import TASKS, Sample, load_task

TASK = replace(TASKS["Copa"], separator=" ## ")


@pytest.fixture
def ask(opt, samples, tiny_tokenizer):
    """A function `(**settings)` that evaluates the tiny OPT on `samples`."""

    def ask(**settings) -> Evaluation:
        return evaluate(opt, tiny_tokenizer, TASK, settings.pop("samples", samples), max_length=64, **settings)

    return ask


@pytest.fixture
def plain(opt, tiny_tokenizer, plain_scores):
    """A function `(samples)` that scores one candidate at a time."""
    return lambda samples: plain_scores(opt, tiny_tokenizer, samples)


def sums(samples, means, tokenizer):
    """Sums of the option tokens' log-probabilities from their means."""
    count = lambda text: len(tokenizer(text)["input_ids"])  # noqa: E731
    return [
        [mean * (count(text) - count(sample.prompt)) for mean, text in zip(of_one, sample.candidates, strict=True)]
        for sample, of_one in zip(samples, means, strict=True)
    ]


def test_the_best_candidate_is_chosen_and_compared(ask, samples, plain):
    evaluation = ask()
    expected = plain(samples)
    for index, (record, sample, scores) in enumerate(zip(evaluation.records, samples, expected, strict=True)):
        assert (record.index, record.origin, record.right) == (index, sample.origin, (sample.label,))
        assert record.scores == record.log_probabilities == pytest.approx(scores, abs=1e-5)
        assert record.prediction == scores.index(max(scores))
        assert record.correct == (record.prediction == sample.label)
    share = sum(record.correct for record in evaluation.records) / 4
    assert evaluation.metrics == {"accuracy": share}


def test_each_right_candidate_counts(ask, samples):
    everything = [replace(s, label=0, also_right=tuple(range(1, len(s.candidates)))) for s in samples]
    assert ask(samples=everything).metrics == {"accuracy": 1.0}


def test_one_set_of_demonstrations_for_all(ask, samples, plain):
    asked = [in_context(sample, samples[:2], " ## ") for sample in samples[:2]]
    records = ask(samples=samples[:2], demonstrations=samples[:2]).records
    for record, scores in zip(records, plain(asked), strict=True):
        assert record.scores == pytest.approx(scores, abs=1e-5)


def test_a_set_of_demonstrations_for_each(ask, samples, plain):
    sets = [samples[:1], samples[1:2], samples[3:], []]
    asked = [in_context(sample, before, " ## ") for sample, before in zip(samples, sets, strict=True)]
    for record, scores in zip(ask(demonstrations=sets).records, plain(asked), strict=True):
        assert record.scores == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize("calibration", ["sfc", "icl_sfc"])
def test_calibrated_scores_are_sums_less_those_without_the_question(ask, samples, plain, tiny_tokenizer, calibration):
    shown = samples[3:]
    asked = [in_context(sample, shown, " ## ") for sample in samples]
    bare = [without_question(sample) for sample in samples]
    if calibration == "icl_sfc":
        bare = [in_context(sample, shown, " ## ") for sample in bare]
    means = plain(asked)
    with_question, without = (sums(s, m, tiny_tokenizer) for s, m in ((asked, means), (bare, plain(bare))))
    for record, mean, ours, theirs in zip(
        ask(demonstrations=shown, calibration=calibration).records, means, with_question, without, strict=True
    ):
        assert record.log_probabilities == pytest.approx(mean, abs=1e-5)
        assert record.scores == pytest.approx([a - b for a, b in zip(ours, theirs, strict=True)], abs=1e-4)


def test_the_first_of_equal_scores_is_chosen(ask):
    equal = Sample.of_choices("a gem It was", ["a gem It was great"] * 3, 0, "x")
    assert ask(samples=[equal]).records[0].prediction == 0


def test_many_samples_are_measured_in_windows(ask, samples, monkeypatch):
    once = ask(demonstrations=[samples[:1]] * 4)
    monkeypatch.setattr("xgblora.evaluation.evaluation.WINDOW", 3)
    again = ask(demonstrations=[samples[:1]] * 4)
    assert [record.index for record in again.records] == [0, 1, 2, 3]
    for one, other in zip(once.records, again.records, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-5)


def test_the_model_and_the_random_numbers_are_as_they_were(ask, opt, samples):
    opt.train()
    opt.get_input_embeddings().eval()
    modes = [module.training for module in opt.modules()]
    weights = {name: value.clone() for name, value in opt.state_dict().items()}
    state = torch.get_rng_state()
    first = ask(calibration="sfc")
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in opt.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in opt.state_dict().items())
    # and dropout was off
    assert ask(calibration="sfc") == first


def test_generated_answers_are_measured_by_f1_and_exact_match(shared_model, shared_tokenizer, shared_data):
    tokenizer = shared_tokenizer("stories260K")
    model = AutoModelForCausalLM.from_pretrained(shared_model("stories260K")).eval()
    samples = load_task("SQuAD", str(shared_data("squad"))).valid[:3]
    state = torch.get_rng_state()
    settings = {"max_length": 256, "max_new_tokens": 8}
    written = evaluate(model, tokenizer, TASKS["SQuAD"], samples, **settings).records[0].prediction
    answered = [replace(samples[0], answers=("nothing", f"The {written}!")), *samples[1:]]
    evaluation = evaluate(model, tokenizer, TASKS["SQuAD"], answered, **settings)
    assert torch.equal(torch.get_rng_state(), state)
    first = evaluation.records[0]
    assert (first.prediction, first.right, first.correct) == (written, ("nothing", f"The {written}!"), True)
    assert first.measures == {"f1": 1.0, "em": 1.0}
    assert list(evaluation.metrics) == ["f1", "em"]
    assert evaluation.metrics["em"] == sum(record.measures["em"] for record in evaluation.records) / 3
    assert len(first.log_probabilities) == 1 and first.scores == []


def test_records_are_written_one_a_line(tmp_path):
    chosen = Record(0, "dev.tsv line 2", [-1.0, -2.5], [-1.0, -2.5], 0, (0, 1), {"accuracy": 1.0})
    written = Record(1, "line 3", [-3.0], [], 'a "b" ü', ("b",), {"f1": 0.5, "em": 0.0})
    file = tmp_path / "predictions.jsonl"
    Evaluation({}, [chosen, written]).write(file)
    first, second = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    assert first == {
        "index": 0,
        "origin": "dev.tsv line 2",
        "log_probabilities": [-1.0, -2.5],
        "scores": [-1.0, -2.5],
        "prediction": 0,
        "right": [0, 1],
        "correct": True,
    }
    assert (second["prediction"], second["correct"], second["f1"], second["em"]) == ('a "b" ü', False, 0.5, 0.0)
    assert list(tmp_path.iterdir()) == [file]


def test_no_samples_are_refused(ask):
    with pytest.raises(InputError, match="task Copa: there are no samples"):
        ask(samples=[])


def test_generated_answers_cannot_be_calibrated(opt, samples, tiny_tokenizer):
    with pytest.raises(InputError, match="sfc=True: the answers of SQuAD are generated"):
        evaluate(opt, tiny_tokenizer, TASKS["SQuAD"], samples, max_length=64, calibration="sfc")
