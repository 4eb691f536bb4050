"""A measurement in a process of its own, whose peak memory is then its own too."""

import json
import subprocess
import sys
from typing import Any


def apart(script: str, *words: object) -> dict[str, Any]:
    """Run a script with these arguments, and read the JSON in its last line of output."""
    command = [sys.executable, script, *map(str, words)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(*words, found, flush=True)
    return found
