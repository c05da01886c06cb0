"""The READMEs' commands: each exists, and the quick ones run as they are written. deploy's has tests of its own."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "training/README.md", "tests/load/README.md")]
BLOCKS = [block for page in PAGES for block in re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL)]
LINES = [line for block in BLOCKS for line in block.splitlines() if line.strip()]
COMMANDS = list(dict.fromkeys(line.split("  #")[0].strip() for line in LINES))
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = re.findall(r"^([a-z-]+):", MAKEFILE, flags=re.MULTILINE)
(PHONY,) = re.findall(r"^\.PHONY: (.+)", MAKEFILE, flags=re.MULTILINE)

# Those that need neither a server nor minutes, and write nothing.
QUICK = [c for c in COMMANDS if "--dry-run" in c or "serving.repository" in c]


def test_readme_has_its_commands() -> None:
    """The two that do everything, the artist's, the cluster's; and enough quick ones for a test to mean something."""
    for command in (
        "make demo",
        "make test",
        "python clients/walk.py --steps 20",
        "kubectl apply -f deploy/train-wgan.yaml",
        "kubectl apply -k deploy/",
    ):
        assert command in COMMANDS
    assert len(QUICK) >= 3


def test_a_file_keeps_no_target_from_running() -> None:
    """None is a file's name to make, which would then find it up to date."""
    assert sorted(TARGETS) == sorted(PHONY.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_command_exists(command: str) -> None:
    """Its make target, module, script or manifest is there."""
    words = command.split()
    match words:
        case ["make", target, *_]:
            assert target in TARGETS
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module) is not None
        case ["python", script, *_]:
            assert (ROOT / script).is_file()
        case ["kubectl", "apply", "-f", manifest]:
            assert (ROOT / manifest).is_file()
        case ["kubectl", "apply", "-k", folder]:
            assert (ROOT / folder / "kustomization.yaml").is_file()
        case _:
            pytest.fail(f"README has a command that no test knows: {command}")


@pytest.mark.parametrize("command", QUICK)
def test_quick_command_runs(command: str, tmp_path: Path) -> None:
    """Exit status 0, something on standard output, and nothing in the folder where it runs."""
    words, here = [sys.executable, *command.split()[1:]], os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, env=here, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", ["walk.py", "classify.py", "stylize.py", "paint.py", "colorize.py", "upscale.py"])
def test_scripts_know_every_flag_that_the_readme_gives_them(script: str) -> None:
    """Flags in the README are flags of the script."""
    asked = [sys.executable, f"clients/{script}", "--help"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    used = {word for c in COMMANDS if script in c for word in c.split() if word.startswith("--")}
    assert used
    assert used <= set(re.findall(r"--[a-z-]+", done.stdout))


def anchors(page: Path) -> set[str]:
    """What a link to one of its headings ends in."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "deploy" / "README.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every file, folder, picture and heading that a page links to is there."""
    links = re.findall(r"\]\(([^)]+)\)", page.read_text())
    for link in [each for each in links if not each.startswith("https://")]:
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not heading or heading in anchors(target), link


def test_bare_make_prints_help() -> None:
    """`make` alone lists the targets with a word on each."""
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    for target in ("demo", "test", "serve", "train"):
        assert re.search(rf"make {target} +\w", done.stdout)
