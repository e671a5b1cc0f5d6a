"""A tool for tests, put beside the real ones: it does what its request says."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from jarvis_rules import errors
from jarvis_rules.tools.program import report_progress, run_tool

OUT = Path("outputs/out")


def work(request):
    match request:
        case {"error": str(kind), **rest}:
            raise getattr(errors, kind)(**rest)
        case {"crash": str(text)}:
            raise RuntimeError(text)
        case {"signal": int(number)}:
            os.kill(os.getpid(), number)
        case {"report": str(pipe)}:
            Path(pipe).write_text(str(os.getpid()))
            signal.pause()
        case {"phase": str(phase), "until": str(pipe)}:
            report_progress(phase)
            Path(pipe).read_text()
        case {"random": True}:
            OUT.write_bytes(os.urandom(8))
            return
        case {"write": dict(files)}:
            for name, text in files.items():
                path = Path("outputs", name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            return
    seen = {
        "environment": dict(os.environ),
        "inputs": {
            p.relative_to("inputs").as_posix(): p.read_bytes().decode("latin-1")
            for p in Path("inputs").rglob("*")
            if p.is_file()
        },
        "here": sorted(p.name for p in Path().iterdir()),
        "stdin": sys.stdin.read(),
    }
    OUT.write_text(json.dumps(seen))


if __name__ == "__main__":
    sys.exit(run_tool(work))
