"""Reading audio files as the speech pipelines want them: one channel, FP32, their own rate."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jarvis_rules.errors import JarvisError
from jarvis_rules.formats.input_file import missing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Audio(NamedTuple):
    """Samples, FP32 with full scale at 1, and the rate in Hz that the file itself had."""

    samples: NDArray[np.float32]
    original_rate: int


def read_audio(path: Path, sample_rate: int) -> Audio:
    """Return the file's samples at `sample_rate` Hz, resampled where its own rate differs.

    Any format of libsndfile. Raises `JarvisError`: `file.missing`, `audio.unreadable`,
    `audio.channels`, `audio.empty`, `audio.not-finite`.
    """
    import numpy as np
    import soundfile

    rate = check_audio(path)
    try:
        samples, _ = soundfile.read(path, dtype="float32")
    except (OSError, RuntimeError) as fault:
        raise _unreadable(path, fault) from fault
    if not np.isfinite(samples).all():
        raise JarvisError(
            f"{np.count_nonzero(~np.isfinite(samples))} of {samples.size} samples are not finite",
            slug="audio.not-finite",
            where=str(path),
            hint="write the file again from its source",
        )
    if rate != sample_rate:
        samples = _resample(samples, rate, sample_rate)
    if samples.size == 0:
        raise _empty(path)
    return Audio(np.ascontiguousarray(samples, dtype=np.float32), rate)


def check_audio(path: Path) -> int:
    """Return the file's sample rate in Hz from its header alone.

    Raises as `read_audio`, but for faults in the samples.
    """
    import soundfile

    if not path.exists():
        raise missing(path)
    try:
        facts = soundfile.info(str(path))
    except (OSError, RuntimeError) as fault:
        raise _unreadable(path, fault) from fault
    if facts.channels != 1:
        raise JarvisError(
            f"expected 1 channel, got {facts.channels}",
            slug="audio.channels",
            where=str(path),
            hint=f"sox {_quoted(path)} {_quoted(path.with_suffix('.mono.wav'))} remix -",
        )
    if facts.frames == 0:
        raise _empty(path)
    return int(facts.samplerate)


def _resample(samples: NDArray[np.float32], rate: int, wanted: int) -> NDArray[Any]:
    import soxr

    resampled: NDArray[Any] = soxr.resample(samples, rate, wanted, quality="HQ")
    return resampled


def _empty(path: Path) -> JarvisError:
    return JarvisError(
        "no samples in it", slug="audio.empty", where=str(path), hint="record it again"
    )


def _unreadable(path: Path, fault: Exception) -> JarvisError:
    return JarvisError(
        f"not an audio file that libsndfile reads: {str(fault).rstrip('.')}",
        slug="audio.unreadable",
        where=str(path),
        hint=f"ffmpeg -i {_quoted(path)} -ac 1 {_quoted(path.with_suffix('.mono.wav'))}",
    )


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
