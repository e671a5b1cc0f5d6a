"""Audio reading and the layout of answers; the server's side is in tests/serving."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from jarvis_rules.errors import JarvisError
from jarvis_rules.triton.client import Word, _recognition, read_audio, recognize


def tone(rate: int, seconds: float = 0.5) -> np.ndarray:
    time = np.arange(int(rate * seconds)) / rate
    return (0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_samples_come_back_as_float_with_full_scale_1(tmp_path: Path, name: str) -> None:
    soundfile.write(tmp_path / name, tone(16000), 16000, subtype="PCM_16")
    audio = read_audio(tmp_path / name, 16000)
    assert audio.samples.dtype == np.float32
    assert audio.original_rate == 16000
    np.testing.assert_allclose(audio.samples, tone(16000), atol=4e-5)


def test_another_rate_is_resampled(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(44100), 44100, subtype="FLOAT")
    audio = read_audio(tmp_path / "a.wav", 16000)
    assert audio.original_rate == 44100
    assert audio.samples.shape == (8000,)
    np.testing.assert_allclose(audio.samples[200:-200], tone(16000)[200:-200], atol=1e-3)


def refused(path: Path) -> JarvisError:
    with pytest.raises(JarvisError) as caught:
        read_audio(path, 16000)
    assert caught.value.where == str(path)
    return caught.value


def test_two_channels_are_refused_with_the_command_that_helps(tmp_path: Path) -> None:
    path = tmp_path / "my call.wav"
    soundfile.write(path, np.zeros((100, 2)), 16000)
    error = refused(path)
    assert error.slug == "audio.channels"
    assert error.hint == f"sox '{path}' '{tmp_path / 'my call.mono.wav'}' remix -"


def test_a_missing_file_is_answered_with_a_suggestion(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "hello.wav", tone(16000), 16000)
    error = refused(tmp_path / "helo.wav")
    assert error.slug == "file.missing"
    assert error.hint == "did you mean `hello.wav`?"
    assert refused(tmp_path / "none" / "helo.wav").slug == "file.missing"


@pytest.mark.parametrize("content", [b"", b"not audio", b"RIFF\x00\x00\x00\x00WAVE"])
def test_what_is_no_audio_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.wav").write_bytes(content)
    assert refused(tmp_path / "a.wav").slug == "audio.unreadable"


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path).slug == "audio.unreadable"


def test_no_samples_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(0), 16000)
    assert refused(tmp_path / "a.wav").slug == "audio.empty"


def test_a_recording_too_short_to_resample_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(1), 96000)
    assert refused(tmp_path / "a.wav").slug == "audio.empty"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(tmp_path: Path, value: float) -> None:
    samples = tone(16000)
    samples[5] = value
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    error = refused(tmp_path / "a.wav")
    assert error.slug == "audio.not-finite"
    assert "1 of 8000" in error.message


def test_padding_is_cut_off_and_times_are_seconds() -> None:
    recognition = _recognition(
        [
            np.array([b"gr\xc3\xbc\xc3\x9f dich"], np.object_),
            np.array([0.5], np.float32),
            np.array([b"gr\xc3\xbc\xc3\x9f", b"dich", b""], np.object_),
            np.array([[0, 480], [500, 1250], [-1, -1]], np.int32),
            np.array([1.0, 0.5, 0.0], np.float32),
        ]
    )
    assert recognition.transcript == "grüß dich"
    assert recognition.words == (Word("grüß", 0.0, 0.48, 1.0), Word("dich", 0.5, 1.25, 0.5))


def test_nothing_listening_is_unreachable() -> None:
    with pytest.raises(JarvisError) as caught:
        recognize("127.0.0.1:1", "asr", [np.zeros(10, np.float32)])
    assert caught.value.slug == "infer.unreachable"
    assert "jarvis-rules serve" in str(caught.value.hint)
