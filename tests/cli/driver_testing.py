"""An NVIDIA driver to be found on PATH: an `nvidia-smi` that prints what real ones print."""

from __future__ import annotations

import os
import textwrap

H100 = "NVIDIA H100 80GB HBM3, 9.0, 580.159.04, 81559"
A100 = "NVIDIA A100-SXM4-40GB, 8.0, 550.54.14, 40960"
T4 = "Tesla T4, 7.5, 550.54.14, 15360"
A10G = "NVIDIA A10G, 8.6, 580.65.06, 23028"


def install_driver(folder, *gpus):
    """Write `nvidia-smi` into a folder, and return the PATH on which it is found."""
    folder.mkdir(exist_ok=True)
    program = folder / "nvidia-smi"
    (folder / "output").write_text("".join(f"{gpu}\n" for gpu in gpus))
    program.write_text(
        textwrap.dedent(f"""\
        #!/bin/sh
        test "$1" = --query-gpu=name,compute_cap,driver_version,memory.total || exit 2
        test "$2" = --format=csv,noheader,nounits || exit 2
        cat "{folder}/output"
        """)
    )
    program.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"
