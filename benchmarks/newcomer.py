"""How long a newcomer waits for the first picture, from nothing, and for what.

    python benchmarks/newcomer.py

Two ways, each with an empty home folder, so that pip finds nothing that it knew: a fresh clone and
``./run example``, and a wheel installed into a new environment. Then both again, installed. Writes
``benchmarks/results/newcomer.json``; how fast packages arrive is this machine's affair, so the
second times, and the shares, tell more than the first ones.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from provenance import RESULTS, provenance, write_results

from specsegdiff.api import default_model

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Time both ways and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "newcomer.json")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        found = {"clone": clone(Path(folder) / "clone"), "wheel": wheel(Path(folder) / "wheel")}
    print(json.dumps(found, indent=1))
    result = {"meta": provenance(default_model()), "seconds": found}
    write_results(out, result)


def clone(folder: Path) -> dict[str, float]:
    """Seconds of the commands of the README's first screen."""
    timed = stopwatch(folder)
    source = folder / "specsegdiff"
    found = {
        "get": timed("git", "clone", "-q", str(ROOT), str(source)),
        "first": timed("./run", "example", cwd=source),
        "again": timed("./run", "example", cwd=source),
    }
    check(source / "out")
    return found


def wheel(folder: Path) -> dict[str, float]:
    """Seconds of an installation elsewhere, far from the repository."""
    timed = stopwatch(folder)
    timed(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT))
    timed(sys.executable, "-m", "venv", str(folder / "venv"))
    program = folder / "venv" / "bin"
    explain = (str(program / "specsegdiff"), "explain", "--example", "--out", "out")
    found = {
        "get": timed(str(program / "pip"), "install", "-q", str(next(folder.glob("*.whl")))),
        "first": timed(*explain),
        "again": timed(*explain),
    }
    check(folder / "out")
    return found


def stopwatch(folder: Path) -> Callable[..., float]:
    """Runs commands in a folder with an empty home, and tells the seconds."""
    home = folder / "home"
    home.mkdir(parents=True)
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    # where packages come from is the machine's setting, not part of a home
    kept |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}

    def timed(*command: str, cwd: Path = folder) -> float:
        start = time.perf_counter()
        done = subprocess.run(
            command, cwd=cwd, env=kept | {"HOME": str(home)}, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        return time.perf_counter() - start

    return timed


def check(out: Path) -> None:
    """A time without a picture would mean nothing."""
    picture = out / "explanation.png"
    if not picture.exists() or picture.stat().st_size < 10_000:
        sys.exit(f"no picture in {out}")


if __name__ == "__main__":
    main()
