"""The figure of the trainings: a row for each variant that has a curve, and none for a run without any."""

import base64

from harness.run_folder import RunFolder, TrainingStep
from reports.render import write_report
from reports.run import read_run
from reports.training import write_training_figure
from reports.view.watched import Watched
from tests.unit.synthetic_run import write_run


def write_curves(folder, variant="dpo", steps=20, trainings=1):
    """Curves that fall, of every cell of ``variant``."""
    run = RunFolder(folder)
    for cell in run.plan.cells:
        if cell.variant != variant:
            continue
        for training in range(1, trainings + 1):
            for number in range(1, steps + 1):
                loss = 0.7 / number + 0.01 * cell.seed
                run.cell(cell.name).curve.append(
                    TrainingStep(
                        training=training,
                        stage="train",
                        step=number,
                        steps=steps,
                        epoch=number / steps,
                        loss=None if number == 3 else loss,
                        learning_rate=1e-4 * (1 - number / steps),
                        grad_norm=2 * loss,
                        accuracy=1 - loss,
                        margin=1 / loss,
                    )
                )


def test_a_run_without_curves_has_neither_figure_nor_section(tmp_path):
    run = write_run(tmp_path / "run")
    assert write_training_figure(read_run(run), tmp_path / "figures") is None
    assert not (tmp_path / "figures").exists()
    report = write_report(run)
    assert "## Training" not in report.read_text()
    assert 'id="training"' not in report.with_suffix(".html").read_text()


def test_curves_are_drawn_and_the_report_shows_them(tmp_path):
    run = write_run(tmp_path / "run")
    write_curves(run, trainings=2)
    text = write_report(run).read_text()
    assert "![Curves of the trainings](figures/training.png)" in text
    assert "dotted lines part the trainings" in text
    drawn = (run / "report" / "figures" / "training.svg").read_text()
    assert all(f">{title}<" in drawn for title in ("loss", "reward accuracy", "gradient norm", "learning rate"))
    page = (run / "report" / "report.html").read_text()
    assert f'src="data:image/svg+xml;base64,{base64.b64encode(drawn.encode()).decode()}"' in page
    assert '<a href="#training">' in page


def test_the_curves_are_on_the_page_that_is_served_too(tmp_path):
    run = write_run(tmp_path / "run")
    write_curves(run)
    page = Watched(run, {"runs": []}).snapshot().page
    assert '<a href="#training">' in page and "img-src data:" in page
    assert not (run / "report").exists()


def test_a_long_curve_is_drawn_by_its_means(tmp_path):
    run = write_run(tmp_path / "run")
    write_curves(run, steps=900)
    said = write_training_figure(read_run(run), tmp_path / "figures")
    assert said is not None
    assert "of more than 400 steps, the means of 400 parts" in said.about
