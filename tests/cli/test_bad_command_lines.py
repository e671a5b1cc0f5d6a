"""What people get wrong on the command lines of Jarvis, and what each is told, to the letter."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
from command_testing import MODELS, Commands

from jarvis_rules.pipelines.pipeline import pipeline_names

BAD = [
    (
        "nemo2jarvis --vaildate tiny.nemo",
        2,
        "error: unknown option `--vaildate` [usage]",
        "did you mean `--validate`? see `nemo2jarvis --help`",
    ),
    (
        "nemo2jarvis tiny.nmeo",
        2,
        "error: tiny.nmeo: expected a `.nemo` checkpoint [file.suffix]",
        "did you mean `tiny.nemo`?",
    ),
    (
        "nemo2jarvis tniy.nemo",
        2,
        "error: tniy.nemo: no such file [file.missing]",
        "did you mean `tiny.nemo` or `hifi.nemo`?",
    ),
    (
        "nemo2jarvis word.txt",
        2,
        "error: word.txt: expected a `.nemo` checkpoint [file.suffix]",
        "name a file that NeMo's `model.save_to` wrote",
    ),
    (
        "nemo2jarvis --format ONX tiny.nemo",
        2,
        "error: unknown format `ONX` [format.unknown]",
        "did you mean `ONNX`? known: CKPT, ONNX, TS",
    ),
    (
        "nemo2jarvis --format TS tiny.nemo",
        4,
        "error: tiny.nemo: TorchScript takes a toolchain with torch and NeMo, and there "
        "is none [toolchain.torchscript]",
        "leave the format out: what pipelines are built of is ONNX",
    ),
    (
        "nemo2jarvis --verbose debgu tiny.nemo",
        2,
        "error: `--verbose` takes a number or the name of a level, got `debgu` [usage]",
        "did you mean `DEBUG`? known: NOTSET, DEBUG, INFO, WARN, WARNING, ERROR, FATAL, CRITICAL",
    ),
    (
        "nemo2jarvis --onnx-opset eleven tiny.nemo",
        2,
        "error: option `onnx-opset`: expected a whole number, got 'eleven' [option.invalid]",
        "no effect here: graphs are of opset 17",
    ),
    (
        "nemo2jarvis --schema laef.yaml tiny.nemo",
        2,
        "error: laef.yaml: no such file [file.missing]",
        "did you mean `leaf.yaml` or `bad.yaml` or `broken.yaml`?",
    ),
    (
        "nemo2jarvis --schema bad.yaml tiny.nemo",
        2,
        "error: bad.yaml: unknown section: `file_propertys` [schema.unknown-key]",
        "did you mean `file_properties` or `artifact_properties`? known: "
        "artifact_content, artifact_properties, file_content, file_properties, metadata",
    ),
    (
        "nemo2jarvis --schema broken.yaml tiny.nemo",
        2,
        "error: broken.yaml: not plain YAML: expected the node content, but found "
        "'<stream end>' on line 2 [schema.unreadable]",
        "`docs/reference/archive-schemas.md` describes a schema",
    ),
    (
        "nemo2jarvis --schema leaf.yaml --validate tiny.nemo",
        3,
        "error: tiny.ejrvs: does not comply with the schema leaf.yaml: "
        "model_config.yaml has no `preprocessor.sample_rat`; did you mean "
        "`preprocessor.sample_rate` or `preprocessor.n_fft` or `preprocessor.features`? "
        "[schema.not-compliant]",
        "export a checkpoint that has it, or leave `--validate` out for a warning",
    ),
    (
        "nemo2jarvis --key file:absent.key tiny.nemo",
        2,
        "error: the key file `absent.key` cannot be read: No such file or directory [key.file]",
        "check the path and its permissions",
    ),
    (
        "nemo2jarvis --key env:NO_SUCH_KEY tiny.nemo",
        2,
        "error: the environment variable `NO_SUCH_KEY` is not set [key.environment]",
        "`export NO_SUCH_KEY=…`, or `file:PATH`",
    ),
    (
        "nemo2jarvis --key word.txt tiny.nemo",
        2,
        "error: the key that was given is the name of a file [key.file-name]",
        "for the content of the file write `file:` before its name; a key that is meant "
        "literally must not be a file's name",
    ),
    (
        "nemo2jarvis --out file/a.ejrvs tiny.nemo",
        2,
        "error: file/a.ejrvs: cannot be written: `file` is no folder [file.unwritable]",
        "name another folder",
    ),
    (
        "nemo2jarvis --v tiny.nemo",
        2,
        "error: ambiguous option: --v could match --validate, --verbose, --version [usage]",
        "see `nemo2jarvis --help`",
    ),
    (
        "jarvis-build speech_recogniton a.jmir tiny.ejrvs",
        2,
        "error: unknown pipeline `speech_recogniton` [pipeline.unknown]",
        "did you mean `speech_recognition`? known: {pipelines}",
    ),
    (
        "jarvis-build speech_synthesis a.jmir tiny.ejrvs",
        2,
        "error: the pipeline `speech_synthesis` is not available yet [pipeline.planned]",
        "available: {pipelines}",
    ),
    (
        "jarvis-build speech_recognition a.jmir tiny.ejrvs --ofline",
        2,
        "error: unknown option `--ofline` [usage]",
        "did you mean `--offline`? see `jarvis-build speech_recognition --help`",
    ),
    (
        "jarvis-build speech_recognition a.jmir tiny.ejrvs --nn.max_batch_sise=4",
        2,
        "error: unknown option `--nn.max_batch_sise=4` [usage]",
        "did you mean `--nn.max_batch_size` or `--max_batch_size` or "
        "`--featurizer.max_batch_size`? see `jarvis-build speech_recognition --help`",
    ),
    (
        "jarvis-build speech_recognition a.jmir tiny.ejrvs --max_batch_size=many",
        2,
        "error: option `max_batch_size`: expected a whole number, got 'many' [option.invalid]",
        "largest batch of the pipeline",
    ),
    (
        "jarvis-build speech_recognition tiny.ejrvs a.jmir",
        2,
        "error: tiny.ejrvs: the output must be a `.jmir` file [file.suffix]",
        "the order is OUT.jmir, then IN.ejrvs; rename it to `*.jmir`",
    ),
    (
        "jarvis-build speech_recognition a.jmir hifi.ejrvs",
        2,
        "error: hifi.ejrvs: a model of family `hifigan` does not fit the slot "
        "`acoustic_model` of speech_recognition, which takes: conv_asr, conformer_ctc "
        "[pipeline.wrong-family]",
        "give the archive of another model, or build another pipeline",
    ),
    (
        "jarvis-build speech_recognition a.jmir weights.ejrvs",
        2,
        "error: weights.ejrvs: the archive holds weights (`--format CKPT`) and no graph "
        "to build a pipeline of [pipeline.no-graph]",
        "export the model again without `--format`",
    ),
    (
        "jarvis-build speech_recognition a.jmir sealed.ejrvs",
        3,
        "error: sealed.ejrvs: the archive is encrypted, and no key was given "
        "[encryption.missing-key]",
        "give it behind the file, `FILE:KEY`; KEY is `env:NAME`, `file:PATH` or the key",
    ),
    (
        "jarvis-build speech_recognition a.jmir sealed.ejrvs:wrong",
        3,
        "error: sealed.ejrvs: the key is not the one that the archive was encrypted "
        "with [encryption.wrong-key]",
        "check the key; a key file may end in one line break, which is no part of it",
    ),
    (
        "jarvis-build speech_recognition a.jmir tiny.ejrvs:key",
        3,
        "error: tiny.ejrvs: a key was given, and the archive is not encrypted "
        "[encryption.not-encrypted]",
        "leave the key out, if you expected a plain archive; else this is not the file "
        "that you were given the key for",
    ),
    (
        "jarvis-build speech_recognition tiny.jmir tiny.ejrvs --name other",
        2,
        "error: tiny.jmir: exists, and what would be written differs [build.exists]",
        "overwrite it with `-f`, or choose another name",
    ),
    (
        "jarvis-deploy tiny.jmir",
        2,
        "error: the following arguments are required: DIR [usage]",
        "see `jarvis-deploy --help`",
    ),
    (
        "jarvis-deploy empty models",
        2,
        "error: empty: there is no `.jmir` in the folder [file.missing]",
        "make one with `jarvis-build`; the model repository is the last argument",
    ),
    (
        "jarvis-deploy tiny.jmir file --gpu cpu",
        2,
        "error: file: cannot be the output folder: File exists [file.unwritable]",
        "name a folder that you may write to",
    ),
    (
        "jarvis-deploy tniy.jmir models --gpu cpu",
        2,
        "error: tniy.jmir: no such file [file.missing]",
        "did you mean `tiny.jmir` or `tiny.ejrvs`?",
    ),
    (
        "jarvis-deploy tiny.jmir models --gpu a1000",
        2,
        "error: unknown GPU `a1000` [gpu.unknown]",
        "did you mean `a100` or `a6000` or `a10`? `jarvis-rules gpus` lists them",
    ),
    (
        "jarvis-deploy tiny.jmir models --gpu a100,l4",
        2,
        "error: option `--gpu`: one target each time, got `a100,l4` [gpu.several]",
        "run once for each, into folders of their own; `a100+l4` is one target",
    ),
    (
        "jarvis-deploy tiny.jmir models --gpu h100 --engine tensorrt_rtx",
        2,
        "error: h100 is sm_90: TensorRT-RTX cannot target it [engine.target]",
        "--engine tensorrt on a machine with that GPU, or --engine onnxruntime, which runs on any",
    ),
    (
        "jarvis-deploy tiny.jmir models --gpu cpu --precision fp61",
        2,
        "error: unknown precision `fp61` [precision.unknown]",
        "did you mean `fp16`? known: bf16, fp16, fp32",
    ),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(tmp_path, capsys, monkeypatch, cache):
    run = Commands(tmp_path, capsys, monkeypatch, cache)
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    shutil.copy(MODELS / "hifigan.nemo", "hifi.nemo")
    run.ok("nemo2jarvis", "tiny.nemo")
    run.ok("nemo2jarvis", "hifi.nemo")
    run.ok("nemo2jarvis", "--key", "k", "--out", "sealed", "tiny.nemo")
    run.ok("nemo2jarvis", "--format", "CKPT", "--out", "weights", "tiny.nemo")
    run.ok("jarvis-build", "speech_recognition", "tiny.jmir", "tiny.ejrvs")
    leaves = "decoder.vocabulary, preprocessor.sample_rat"
    Path("leaf.yaml").write_text(f"file_content: [model_config.yaml: [{leaves}]]\n")
    Path("bad.yaml").write_text("file_propertys: []\n")
    Path("broken.yaml").write_text("metadata: [\n")
    Path("empty").mkdir()
    Path("file").write_text("x")
    Path("word.txt").write_text("x")
    return run


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("line", "code", "error", "hint"), BAD, ids=[line for line, *_ in BAD])
def test_one_message_with_the_fix(run, line, code, error, hint):
    before = files(run.folder)
    command, *words = shlex.split(line)
    done = run(command, *words)
    expected = hint.replace("{pipelines}", ", ".join(pipeline_names()))
    assert done.stderr[done.stderr.index("error: ") :] == f"{error}\n\nhint: {expected}\n"
    assert (done.code, done.stdout) == (code, "")
    # A lock of a repository is no output.
    left = {path: data for path, data in files(run.folder).items() if path.name != ".lock"}
    assert left == before, "nothing is written or changed"
