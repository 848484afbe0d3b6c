"""Figures: which are drawn, and that they are whole."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from xgblora.comparison import figures
from xgblora.comparison.figures import Curve, draw, draw_all, loss_curves
from xgblora.comparison.report import make


@pytest.fixture
def report(finished):
    runs = [finished("lora_zo", seed, losses=(0.7, 0.6, 0.5)) for seed in (0, 1)]
    runs += [finished("xgblora_zo", seed, losses=(0.7, 0.6, 0.5), staged_eval=True) for seed in (0, 1)]
    runs += [finished("lora_fo", seed, losses=(0.7, 0.5, 0.4)) for seed in (0, 1)]
    return make(runs, {}, [0, 1])


def test_every_figure_is_drawn_and_a_pdf_beside_it(report, tmp_path):
    drawn = draw_all(report, tmp_path, title="t", loss_figure=tmp_path / "far" / "l.png", pdf=True)
    names = ["l.png", "loss_by_forwards.png", "metric.png"]
    names += ["metric_by_forwards.png", "loss_at_merges.png", "metric_by_round.png"]
    assert [path.name for path in drawn] == names
    for path in drawn:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF")


def test_what_there_is_nothing_for_is_not_drawn(finished, tmp_path):
    report = make([finished("lora_zo")], {}, [0])
    drawn = draw_all(report, tmp_path, title="t", loss_figure=tmp_path / "loss.png", pdf=False)
    assert [path.name for path in drawn] == [
        *("loss.png", "loss_by_forwards.png"),
        *("metric.png", "metric_by_forwards.png"),
    ]
    assert not list(tmp_path.glob("*.pdf"))


def test_curves_that_are_the_same_say_so_and_forwards_are_2_and_3_a_step(report):
    lora, xgblora, first_order = loss_curves(report, by_forwards=True)
    assert (lora.like, xgblora.like, first_order.like) == (None, "lora_zo", None)
    assert lora.x.tolist() == [2, 4, 6]
    assert first_order.x.tolist() == [3, 6, 9]
    assert xgblora.merges == [2]
    assert lora.seeds.shape == (2, 3)


def test_a_run_that_diverges_does_not_press_the_others_flat():
    good = Curve("good", np.arange(100), np.linspace(0.7, 0.5, 100)[None])
    bad = Curve("bad", np.arange(100), np.r_[np.linspace(0.7, 0.6, 97), 50.0, 500.0, np.nan][None])
    low, high = figures._limits([good, bad])
    assert low < 0.5
    assert 0.7 < high < 2.0


def test_a_curve_of_nothing_but_nan(tmp_path):
    curve = Curve("a", np.arange(3), np.full((2, 3), np.nan))
    draw(tmp_path / "a.png", [curve], title="t", xlabel="x", ylabel="y")
    assert (tmp_path / "a.png").exists()


def test_a_task_whose_metric_is_not_known_on_the_way_has_no_curve_of_it(finished, tmp_path):
    run = finished("lora_zo")
    run.folder.eval_loss.write_text('{"step": 1, "eval_loss": 0.5}\n{"step": 2, "eval_loss": 0.4}\n')
    drawn = draw_all(make([run], {}, [0]), tmp_path, title="t", loss_figure=tmp_path / "loss.png", pdf=False)
    assert [path.name for path in drawn] == ["loss.png", "loss_by_forwards.png"]


@pytest.mark.parametrize("setting", ["", " (3 seeds, learning_rate 0.0003)"])
def test_the_names_of_all_curves_are_inside_the_figure(monkeypatch, tmp_path, setting):
    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (save(figure, *a, **k), drawn.append(figure)))
    curves = [
        Curve("lora_zo" + setting, np.arange(3), np.zeros((2, 3))),
        Curve("xgblora_zo_2000" + setting, np.arange(3), np.zeros((2, 3)), index=1, like="lora_zo"),
    ]
    draw(tmp_path / "a.png", curves, title="t", xlabel="x", ylabel="y")
    (legend,) = drawn[0].legends
    box, page = legend.get_window_extent(), drawn[0].bbox
    assert page.x0 <= box.x0 and box.x1 <= page.x1
