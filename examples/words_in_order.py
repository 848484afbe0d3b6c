"""A small model learns from reward alone to write three words in alphabetical order; a program checks them.

    python examples/words_in_order.py --steps 100 --seeds 0 1 2 --figure docs/images/words_in_order.png

Without flags it makes the first steps of one seed. The model is the one that ships with the package: it writes reviews,
and nobody shows it a right answer. The task is an easy one, for answers need not depend on the prompt. Prompts that it
has not seen judge it.
"""

import argparse
import json
import tempfile
from pathlib import Path

STEPS, WORDS = 30, 3
OF, THINGS = ("the", "this", "my", "a"), ("film", "service", "bread", "design", "coffee", "menu", "camera", "phone")


def ordered(prompt: str, completion: str, row: dict) -> float:
    """1 if the first three words are in alphabetical order, none twice and no sign between them; else 0."""
    words = completion.split()[:WORDS]
    return float(len(words) == WORDS and all(map(str.isalpha, words)) and sorted({*words}) == words)


def learn(seed: int, steps: int, folder: Path) -> dict[str, list[float]]:
    """One run of `xgblora-train --trainer population`: steps and held-out rewards, at the beginning and as it goes."""
    # here, because the processes of rewards import this file too
    from xgblora.cli.train import parse
    from xgblora.runs.evolve import evolve

    prompts = [{"text": f"{of} {thing}"} for thing in THINGS for of in OF]
    for name, rows in (("train", [*prompts[1::3], *prompts[2::3]]), ("held_out", prompts[::3])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    flags = ["--trainer=population", f"--reward={__file__}:ordered", "--prompt_template={text}"]
    flags += [f"--prompts={folder}/train.jsonl", f"--eval_prompts={folder}/held_out.jsonl"]
    flags += ["--target_modules=all-linear", "--xgblora_layers=0.75:1.0", "--shaping=z-score", "--use_cpu"]
    flags += ["--members=128", "--sigma=0.1", "--learning_rate=0.15", "--temperature=0.5"]
    flags += ["--prompts_per_step=4", "--max_new_tokens=5", f"--max_steps={steps}", "--eval_steps=10"]
    evolve(*parse([*flags, f"--seed={seed}", f"--output_dir={folder}/run", "--save_model=false"]))
    lines = (folder / "run" / "eval_reward.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    return {name: [entry[name] for entry in entries] for name in ("step", "reward")}


def draw(path: Path, curves: dict[int, dict[str, list[float]]]) -> None:
    from xgblora.figure_file import figure_file

    with figure_file(path, size=(8, 4)) as (_, axes):
        for seed, curve in curves.items():
            axes.plot(curve["step"], curve["reward"], "o-", markersize=3, label=f"seed {seed}")
        axes.set(xlabel="step", ylabel="reward on held-out prompts", ylim=(0, 1), title="words in alphabetical order")
        axes.grid(alpha=0.2)
        axes.legend()


def main(steps: int = STEPS, seeds: tuple[int, ...] = (0,), figure: Path | None = None) -> None:
    curves = {}
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            curves[seed] = learn(seed, steps, Path(folder))
        before, *_, after = curves[seed]["reward"]
        print(f"seed {seed}: held-out reward {before:.2f}, after {steps} steps {after:.2f}")
    if figure is not None:
        draw(figure, curves)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--figure", type=Path)
    main(**vars(parser.parse_args()))
