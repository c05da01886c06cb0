"""What the commands of training say to a flag that they do not have."""

from __future__ import annotations

import sys

import pytest

from training import export, generate, submit, torchrun


@pytest.mark.parametrize(
    ("main", "arguments", "says"),
    [
        pytest.param(export.main, ["runs/wgan", "--publsh", "models"], "required: --publish", id="export"),
        pytest.param(generate.main, ["--chek"], "unrecognized arguments: --chek", id="generate"),
        pytest.param(submit.main, ["wgan", "--folow"], "unrecognized arguments: --folow", id="submit"),
        pytest.param(torchrun.main, ["--unless"], "--unless: expected one argument", id="torchrun"),
    ],
)
def test_a_wrong_flag_is_one_line_and_status_2(main, arguments, says, monkeypatch, capsys):
    """It begins with the command, as those of serving do, and no usage stands before it."""
    monkeypatch.setattr(sys, "argv", ["", *arguments])
    with pytest.raises(SystemExit) as ended:
        main() if main is export.main else main(arguments)
    said = capsys.readouterr().err
    assert (ended.value.code, said.count("\n")) == (2, 1)
    assert said.startswith(f"python -m {main.__module__}: ")
    assert said.endswith(f"{says} (--help tells more)\n")
