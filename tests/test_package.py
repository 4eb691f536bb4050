"""The package as a whole: what an import costs, what is shipped, and what the README promises."""

import doctest
import importlib
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

import specsegdiff as ssd
from specsegdiff import api
from specsegdiff.data.audio import write_audio
from specsegdiff.models.aasist import AASIST, AASISTConfig

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
HEAVY = ["torchaudio", "diffusers", "lightning", "matplotlib", "scipy", "transformers", "typer"]
MODULES = sorted(m.name for m in pkgutil.walk_packages(ssd.__path__, "specsegdiff."))


def imported_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return {name.split(".")[0] for name in done.stdout.split()}


def test_an_import_is_light() -> None:
    assert "torch" not in imported_by("import specsegdiff")
    # the door itself needs torch, and still nothing heavy beside it
    assert not imported_by("from specsegdiff import explain").intersection(HEAVY)


def test_the_command_line_answers_without_torch() -> None:
    assert "torch" not in imported_by("import specsegdiff.cli")


def test_public_names_resolve_and_explain_themselves() -> None:
    for name in ssd.__all__:
        assert getattr(ssd, name).__doc__, name
    assert dir(ssd) == sorted(ssd.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = ssd.nonsense


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_true(name: str) -> None:
    if name.startswith("specsegdiff.train"):
        pytest.importorskip("lightning", reason="training needs the extra 'train'")
    failed, _ = doctest.testmod(importlib.import_module(name), extraglobs={"torch": torch})
    assert failed == 0


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a wheel that was built from the sdist puts into an environment."""
    pytest.importorskip("hatchling", reason="building a wheel needs the extra 'test'")
    folder = tmp_path_factory.mktemp("build")

    def build(what: str, source: Path) -> Path:
        command = [sys.executable, "-m", "hatchling", "build", "-t", what, "-d", str(folder)]
        subprocess.run(command, cwd=source, check=True, capture_output=True)
        return next(folder.glob("*.whl" if what == "wheel" else "*.tar.gz"))

    with tarfile.open(build("sdist", ROOT)) as archive:
        archive.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    with zipfile.ZipFile(build("wheel", source)) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_the_types_marker_and_all_assets(installed: Path) -> None:
    assert (installed / "specsegdiff" / "py.typed").is_file()
    for folder in ("specsegdiff/assets", "specsegdiff/narration"):
        kept = [
            f for f in (ROOT / folder).rglob("*") if f.is_file() and "__pycache__" not in str(f)
        ]
        assert all((installed / f.relative_to(ROOT)).read_bytes() == f.read_bytes() for f in kept)
    assert not (installed / "tests").exists()


@pytest.mark.slow
def test_the_wheel_explains_without_its_source(installed: Path, tmp_path: Path) -> None:
    """Far from the repository: the package, its methods and its weights are those of the wheel."""
    code = (
        "import baselines, specsegdiff; print(specsegdiff.__file__, baselines.__file__); "
        "from specsegdiff.benchmark import available; print(*available()); "
        "from specsegdiff.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "explain", "--example", "--json", "--out", "found"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        check=True,
        capture_output=True,
        text=True,
    )
    places, methods, result = done.stdout.splitlines()
    assert all(Path(place).is_relative_to(installed) for place in places.split())
    assert {"specsegdiff", "attnlrp", "random"} <= set(methods.split())
    found = json.loads(result)
    # by chance 5 % of the marked bins lie in the true mask
    assert found["true_share"] > 0.1
    assert (tmp_path / "found" / "explanation.png").is_file()


# ---------------------------------------------------------------- README and scripts


def test_the_two_commands_of_the_readme_are_the_ones_that_run() -> None:
    first_screen = README.split("## ")[0]
    assert re.findall(r"^\$ (.+)$", first_screen, re.MULTILINE) == ["./run example", "./run test"]
    ci = (ROOT / ".ci" / "run").read_text("utf-8")
    assert ci.rstrip().splitlines()[-1] == "./run test"
    script = (ROOT / "run").read_text("utf-8")
    for task in ("example", "test"):
        assert re.search(rf"^{task}\)$", script, re.MULTILINE)
    for path in (ROOT / "run", ROOT / ".ci" / "run"):
        assert os.access(path, os.X_OK)
        subprocess.run(["sh", "-n", str(path)], check=True)


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_the_first_command_explains_the_example(tmp_path: Path) -> None:
    """All of it but the installation, in an environment that is there already."""
    for name in ("run", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    program = tmp_path / ".venv" / "bin" / "specsegdiff"
    program.parent.mkdir(parents=True)
    start = "from specsegdiff.cli import main; main()"
    program.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c '{start}' \"$@\"\n")
    program.chmod(0o755)
    stamp = tmp_path / ".venv" / ".specsegdiff-example"
    stamp.touch()
    os.utime(tmp_path / "pyproject.toml", (0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "VENV"}
    done = subprocess.run(
        ["./run", "example"],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert "R1" in done.stdout
    assert "Installing" not in done.stdout
    assert (tmp_path / "out" / "explanation.png").read_bytes().startswith(b"\x89PNG")


def test_the_python_in_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = ssd.SpecSegDiff.from_preset("tiny", draws=2).eval()
    monkeypatch.setattr(api, "default_model", lambda: model)
    # a player needs IPython, which only a notebook has
    monkeypatch.setattr(ssd.Explanation, "listen", lambda self, what: None)
    monkeypatch.chdir(tmp_path)
    wave = 0.1 * torch.randn(16_000, generator=torch.Generator().manual_seed(0))
    write_audio("call.wav", wave, sample_rate=16_000)
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "call.png").exists()


def test_the_attributions_in_the_readme_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("zennit", reason="attributions need the extra 'baselines'")
    torch.manual_seed(0)
    detector = AASIST(AASISTConfig(n_samples=4000, channels=(4, 4))).eval()
    monkeypatch.setattr(AASIST, "from_published", classmethod(lambda cls, source: detector))
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[1]
    names = {"wave": 0.1 * torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))}
    exec(compile(code, "README.md", "exec"), names)
    assert names["attribution"].shape == (1, 513, 16)
    assert float(names["attribution"].abs().max()) > 0


def test_files_that_the_readme_links_to_exist() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert "docs/images/example.png" in links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_file_tree_in_the_readme_is_the_package() -> None:
    tree = README.split("```text")[1].split("```")[0]
    named = set(re.findall(r"^[├└]── (\w+(?:\.py|/))", tree, re.MULTILINE))
    there = {
        path.name + ("/" if path.is_dir() else "")
        for path in (ROOT / "specsegdiff").iterdir()
        if not path.name.startswith(("_", ".")) and path.name != "py.typed"
    }
    assert named == there


def test_no_file_names_a_path_of_some_machine() -> None:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no git checkout")
    roots = "home|root|Users|work|mnt|opt|scratch|srv|data"
    machine_path = re.compile(rf"""(?:^|[\s"'`=(:,])/(?:{roots})/[\w.-]""")
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if not path.is_file():
            continue
        try:
            lines = path.read_text("utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        found += [f"{name}: {line.strip()}" for line in lines if machine_path.search(line)]
    assert found == []
