"""Every command that README, docs and model cards show: it parses, and it runs, page by page.

The commands run in a folder that looks like a reader's. Only sizes differ: recordings of a second
or less, trainings of two steps, and what asks for a cluster or an accelerator gets this machine.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from speech import speech
from test_docs import fenced
from toy import write_corpus
from typer.main import get_command
from typer.testing import CliRunner

from specsegdiff.cli import app, serving
from specsegdiff.data.audio import write_audio

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "specsegdiff" / "assets").rglob("*.md")),
]
RATE = 16_000

ELSEWHERE = {
    r"\./run example": "test_package runs it",
    r"\./run test": "it runs these tests",
    r"pip install ": "test_package installs the wheel into an empty environment",
    r"\S*sphinx-build ": "test_docs builds them",
    r"srun .*python script\.py": "needs SLURM",
}
"Lines of shell that no test here runs, and why."

HERE = {
    r"srun .*?(?=specsegdiff)": "",
    r"--accelerator gpu": "--accelerator cpu",
    r"--(workers|jobs) \d+": r"--\1 2",
    r"(--nproc-per-node) \d+": r"\1 2",
}
"What a cluster or an accelerator would run, as this machine does."

SIZES = {
    "steps": 2,
    "mapping_steps": 1,
    "batch": 2,
    "frames": 32,
    "warmup": 1,
    "validate_every": 2,
    "n_samples": 4_000,
    "group": 2,
    "max_tokens": 4,
    "model": "models/qwen",
}
"What a reader's YAML holds here, where it holds such a field at all."


def lines(page: Path) -> list[str]:
    """Lines of shell in a page."""
    found = []
    for block in fenced(page.read_text("utf-8"), "sh|bash|console"):
        for line in block.replace("\\\n", " ").splitlines():
            text = re.sub(r"(^\$ )|(\s+# .*)", "", line).strip()
            if text and not text.startswith("#"):
                found.append(text)
    return found


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def ours() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for line in lines(page):
            if found := re.search(r"(?:^|srun .*)(specsegdiff .*)", line):
                yield name_of(page), found[1]


@pytest.mark.parametrize(("page", "line"), ours())
def test_every_command_is_one_of_the_command_line(page: str, line: str) -> None:
    _, *words = shlex.split(line)
    command: Any = get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    assert not hasattr(command, "commands"), f"{page}: no such command"
    # parses and converts all options, and runs nothing
    command.make_context(line, words)


# ---------------------------------------------------------------- a reader's folder


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has before the first command of any page: recordings, configurations, and the
    corpus beside the clone."""
    base = tmp_path_factory.mktemp("reader")
    folder = base / "clone"
    parts = [f"{part}-speech/{part}" for part in ("train", "val", "test")]
    for i, name in enumerate(("call", "recordings/a", *parts)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_audio(folder / f"{name}.wav", speech(seed=i), sample_rate=RATE)
    write_audio(folder / "call.flac", speech(seed=9), sample_rate=RATE)
    (folder / "manifest.csv").write_text("path\nrecordings/a.wav\ncall.wav\n")
    write_pairs(base / "shared" / "corpus")
    (folder / "specsegdiff").symlink_to(ROOT / "specsegdiff")
    for source in (ROOT / "configs").rglob("*.yaml"):
        write_small(source.read_text("utf-8"), folder / source.relative_to(ROOT))
    page = ROOT / "docs" / "how-to" / "train-at-home.md"
    write_small(fenced(page.read_text("utf-8"), "yaml")[0], folder / "my-run.yaml")
    return base


def write_pairs(folder: Path) -> None:
    """Two pairs of each split."""
    folder.mkdir(parents=True)
    write_corpus(folder, ("train", "train", "val", "val", "test", "test"))


def write_small(text: str, path: Path) -> None:
    """A YAML of the project at the sizes of a test."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(small(yaml.safe_load(text))), "utf-8")


def small(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    changed = {
        key: SIZES[key] if key in SIZES and not isinstance(old, dict) else small(old)
        for key, old in value.items()
    }
    # the networks that a run starts from are made by the commands before it
    if str(value.get("model", "")).startswith("runs/"):
        changed["model"] = value["model"]
    # defaults that are too large here
    if "steps" in value:
        changed |= {"warmup": 1, "validate_every": 2, "batch": 2, "precision": "32-true"}
    return changed


# ---------------------------------------------------------------- and what pages presuppose


def pairs(folder: Path) -> None:
    write_pairs(folder / "pairs")


def local_pairs(folder: Path) -> None:
    write_pairs(folder / "runs" / "local-pairs")


def model(folder: Path) -> None:
    write_pairs(folder / "runs" / "pairs")
    succeed(folder, "specsegdiff train segmenter --config my-run.yaml --out runs/mine")


def detector(folder: Path) -> None:
    shutil.copytree(
        ROOT / "specsegdiff/assets/wav2vec2-aasist-small", folder / "runs/detector/model"
    )


def qwen(folder: Path) -> None:
    pytest.importorskip("transformers", reason="narrators need the extra 'vlm'")
    from vlms import make_vlm

    for part in make_vlm("qwen2.5-vl"):
        part.save_pretrained(folder / "models" / "qwen")


def examples(folder: Path) -> None:
    write_pairs(folder / "runs" / "pairs")
    succeed(folder, "specsegdiff make-examples --pairs runs/pairs --out runs/narrator --heat")


def explanation(folder: Path) -> None:
    succeed(folder, "specsegdiff explain call.wav --out out/")


PRESUPPOSED: dict[str, tuple[Callable[[Path], None], ...]] = {
    "README.md": (local_pairs,),
    "docs/how-to/ask-about-a-place.md": (explanation,),
    "docs/how-to/heatmaps-and-vlms.md": (qwen, pairs, local_pairs),
    "docs/how-to/onnx.md": (model,),
    "docs/how-to/own-detector.md": (detector, pairs, local_pairs),
    "docs/how-to/own-method.md": (pairs,),
    "docs/how-to/own-pairs.md": (model,),
    "docs/how-to/own-recordings.md": (model,),
    "docs/how-to/train-at-home.md": (local_pairs,),
    "docs/how-to/train-on-a-cluster.md": (qwen, examples),
    "specsegdiff/assets/addsegdiff-small/README.md": (local_pairs,),
    "specsegdiff/assets/narrator-small/README.md": (local_pairs,),
}
"What a page's text asks for before its first command."


# ---------------------------------------------------------------- running


def succeed(folder: Path, line: str) -> None:
    """Run a command of ours in a folder."""
    words = shlex.split(line)[1:]
    if "--ray" in words:
        run_apart(
            folder, [sys.executable, "-c", "from specsegdiff.cli import main; main()", *words]
        )
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(serving, "time", SimpleNamespace(sleep=visit))
        result = CliRunner().invoke(app, words)
    # a page that is served ends with Ctrl+C
    expected = 130 if words[0] == "demo" else 0
    assert result.exit_code == expected, f"{line}\n{result.stdout}\n{result.stderr}"
    if words[0] == "demo":
        served = re.search(r"http://\S+", result.stdout)
        assert served, result.stdout


def visit(seconds: float) -> None:
    raise KeyboardInterrupt


def run_apart(folder: Path, command: list[str]) -> None:
    """Run a command in a process of its own."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def script(page: Path, folder: Path) -> None:
    """The script that a page shows, at this machine's size."""
    (code,) = [block for block in fenced(page.read_text("utf-8"), "python") if "def main" in block]
    code = code.replace("devices=8", "devices=2") + '\nif __name__ == "__main__":\n    main()\n'
    (folder / "script.py").write_text(code)


def needs(line: str) -> None:
    """Skip where an extra that a command needs is missing."""
    for pattern, modules in {
        r" train ": ("lightning",),
        r" (mfpt|narrator) |--narrator|script\.py": ("lightning", "peft", "transformers"),
        r"attnlrp|gradientshap|deepshap": ("zennit", "captum"),
        r"explain-corpus": ("pyarrow",),
        r"--ray": ("ray",),
        r" demo": ("gradio",),
        r"export|graphs/": ("onnx", "onnxruntime"),
    }.items():
        for module in modules if re.search(pattern, line) else ():
            if find_spec(module) is None:
                pytest.skip(f"{line!r} needs {module}")


@pytest.mark.slow
# Lightning's advice on workers, folders and intervals
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [page for page in PAGES if lines(page)], ids=name_of)
def test_the_commands_of_a_page_run_in_their_order(
    page: Path, reader: Path, tmp_path: Path
) -> None:
    shutil.copytree(reader, tmp_path, dirs_exist_ok=True, symlinks=True)
    folder = tmp_path / "clone"
    todo = [line for line in lines(page) if not any(re.match(p, line) for p in ELSEWHERE)]
    for line in todo:
        needs(line)
    for prepare in PRESUPPOSED.get(name_of(page), ()):
        prepare(folder)
    for line in todo:
        for pattern, replacement in HERE.items():
            line = re.sub(pattern, replacement, line)
        print(f"{time.strftime('%X')} {line}")
        if "script.py" in line:
            script(page, folder)
            run_apart(folder, shlex.split(line))
        else:
            succeed(folder, line)
