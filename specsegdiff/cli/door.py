"""Every way to end, as an exit code and at most one line of text."""

import json
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from specsegdiff.errors import SpecSegDiffError


class Door(TyperGroup):
    """Turns every way to end into an exit code and at most one line of text."""

    def main(self, args: Sequence[str] | None = None, **options: Any) -> Any:  # type: ignore[override]
        """Run, and end the process."""
        words = sys.argv[1:] if args is None else list(args)
        as_json = "--json" in words
        try:
            code = super().main(words, **options | {"standalone_mode": False})
        except SpecSegDiffError as error:
            code = tell(error, str(error), code=2, as_json=as_json)
        except typer.TyperException as error:
            text = f"{error.format_message()} See specsegdiff --help."
            code = tell(error, text, code=error.exit_code, as_json=as_json)
        except (typer.Abort, KeyboardInterrupt):
            code = 130
        except Exception as error:
            if not as_json:
                traceback.print_exc()
            text = f"unexpected {type(error).__name__}: {error}; please report it"
            code = tell(error, text, code=1, as_json=as_json)
        sys.exit(code or 0)


def tell(error: BaseException, text: str, *, code: int, as_json: bool) -> int:
    """Print an error as one line, and hand its exit code back."""
    line = " ".join(text.split())
    if as_json:
        report = {"error": {"kind": type(error).__name__, "message": line, "exit_code": code}}
        print(json.dumps(report), file=sys.stderr)
    else:
        print(f"error: {line}", file=sys.stderr)
    return code
