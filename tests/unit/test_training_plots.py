"""Pictures of a run: what its name and its figures may be."""

from pathlib import Path

import pytest

from training import plots
from training.models.classifier import evaluate as classifier

DOLLARS = r"a$\foo$b"
EPOCH = {"epoch": 1.0, "train_loss": 1.0, "train_accuracy": 0.5, "validation_loss": 1.0, "validation_accuracy": 0.5}


def test_a_name_with_dollar_signs_is_no_formula(tmp_path: Path) -> None:
    """matplotlib takes what is between two for one, and fails for a command that it does not know."""
    plots.save_convergence([{"step": 0, "loss": 1.0}], tmp_path / "convergence.png", title=DOLLARS)
    classifier.save_curves([EPOCH], tmp_path / "curves.png", DOLLARS)
    assert (tmp_path / "convergence.png").exists()
    assert (tmp_path / "curves.png").exists()


@pytest.mark.parametrize("stats", [[], [{"step": 3.0}]], ids=["no row", "no figure"])
def test_a_curve_without_figures_is_not_drawn(
    stats: list[dict[str, float]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run whose stats.jsonl is lost is still exported; one line tells of the picture."""
    path = tmp_path / "convergence.png"
    plots.save_convergence(stats, path, title="a run")
    assert not path.exists()
    assert capsys.readouterr().err == f"{path}: not drawn, as stats.jsonl holds no figures of it\n"


def test_a_row_may_lack_a_figure(tmp_path: Path) -> None:
    """Each figure is drawn where there is one."""
    path = tmp_path / "convergence.png"
    plots.save_convergence([{"step": 0}, {"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5, "l1": 1.0}], path, title="")
    assert path.exists()
