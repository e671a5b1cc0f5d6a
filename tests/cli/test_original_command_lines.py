"""The command lines of Jarvis and Riva that are in public documentation, typed as they are there.

Each is a fact about the old tools: which words they took. A line parses, and runs where what it
asks for is there; else one message says what is not.
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from command_testing import MODELS, Commands

from jarvis_rules.cli import jarvis_build
from jarvis_rules.cli.options import bind_flags, given_options
from jarvis_rules.pipelines.pipeline import find_pipeline, pipeline_names

RUNS = None
# The checkpoints that lines name, and the reference models in their place.
CHECKPOINTS = {
    "NeMo/quartznet": "quartznet",
    "NeMo/tts_hifigan": "hifigan",
    "NeMo/qa": "qa",
    "asr": "quartznet",
    "citrinet": "citrinet",
    "conformer": "conformer",
    "qa": "qa",
    "ner": "token_classification",
    "domain": "text_classification",
    "intent": "intent_slot",
    "punct": "punctuation",
}

EXPORTS = [
    # The documentation of Jarvis 1.3.
    ("nemo2jarvis --out NeMo/quartznet.ejrvs NeMo/quartznet.nemo", RUNS),
    ("nemo2jarvis --out NeMo/hifi.ejrvs NeMo/tts_hifigan.nemo", RUNS),
    ("nemo2jarvis --help", RUNS),
    ("nemo2jarvis -h", RUNS),
    # Its synopsis, option by option.
    ("nemo2jarvis NeMo/quartznet.nemo", RUNS),
    ("nemo2jarvis --validate NeMo/qa.nemo", RUNS),
    ("nemo2jarvis --schema s.yaml NeMo/quartznet.nemo", RUNS),
    ("nemo2jarvis --validate --schema s.yaml NeMo/quartznet.nemo", RUNS),
    ("nemo2jarvis --format ONNX NeMo/qa.nemo", RUNS),
    ("nemo2jarvis --format CKPT NeMo/qa.nemo", RUNS),
    ("nemo2jarvis --format TS NeMo/qa.nemo", "toolchain.torchscript"),
    ("nemo2jarvis --verbose 10 NeMo/quartznet.nemo", RUNS),
    ("nemo2jarvis --verbose DEBUG NeMo/quartznet.nemo", RUNS),
    ("nemo2jarvis --key tlt_encode NeMo/quartznet.nemo", RUNS),
    ("nemo2jarvis --key=tlt_encode --out NeMo/a.ejrvs NeMo/quartznet.nemo", RUNS),
    ("nemo2jarvis NeMo/quartznet.nemo --runtime-check", RUNS),
    # What nemo2riva added.
    ("nemo2jarvis NeMo/quartznet.nemo --out a.riva --format onnx", RUNS),
    ("nemo2jarvis --autocast True --max-dim 100000 --max-batch 32 NeMo/quartznet.nemo", RUNS),
    ("nemo2jarvis --onnx-opset 16 --device cuda NeMo/quartznet.nemo", RUNS),
    ("nemo2jarvis --export-subnet encoder NeMo/quartznet.nemo", "option.planned"),
    ("nemo2jarvis NeMo/quartznet.nemo --export-config cache_support=True", "option.planned"),
    ("nemo2jarvis --cache-support False NeMo/quartznet.nemo", RUNS),
    ("nemo2jarvis --format NEMO NeMo/quartznet.nemo", "format.unknown"),
]

_OFFLINE = "jarvis-build speech_recognition asr.jmir"
BUILDS = [
    # The documentation of Jarvis 1.3: a key behind each file, or none.
    (f"{_OFFLINE}:tlt_encode asr_encrypted.ejrvs:tlt_encode --offline", RUNS),
    (f"{_OFFLINE} asr.ejrvs --offline", RUNS),
    ("jarvis-build qa qa.jmir:tlt_encode qa.ejrvs", RUNS),
    ("jarvis-build token_classification ner.jmir ner.ejrvs", RUNS),
    ("jarvis-build intent_slot intent.jmir intent.ejrvs", RUNS),
    ("jarvis-build text_classification domain.jmir domain.ejrvs", RUNS),
    ("jarvis-build punctuation punct.jmir punct.ejrvs", RUNS),
    ("jarvis-build speech_synthesis tts.jmir:k tacotron2.nemo waveglow.ejrvs:k", "pipeline.models"),
    # Force, verbosity and help, wherever they stand.
    (f"{_OFFLINE} asr.ejrvs --offline -f", RUNS),
    ("jarvis-build -f speech_recognition asr.jmir asr.ejrvs --offline", RUNS),
    ("jarvis-build speech_recognition -f -v asr.jmir asr.ejrvs --offline", RUNS),
    ("jarvis-build speech_recognition -fv asr.jmir asr.ejrvs --offline", RUNS),
    ("jarvis-build speech_recognition --force --verbose asr.jmir asr.ejrvs --offline", RUNS),
    ("jarvis-build speech_recognition -h", RUNS),
    ("jarvis-build qa -h", RUNS),
    ("jarvis-build -h", RUNS),
    # Jarvis 1.1, QuartzNet with a language model.
    (
        f"{_OFFLINE} asr.ejrvs --offline --name=asr_en --language_code=en-US "
        "--decoding_language_model_binary=lm.bin --lm_decoder_cpu.beam_search_width=32 "
        "--lm_decoder_cpu.language_model_alpha=2.0 --lm_decoder_cpu.language_model_beta=1.7",
        "option.planned",
    ),
    # The same without.
    (f"{_OFFLINE} asr.ejrvs --offline --name=asr_en --language_code=en-US", RUNS),
    # Jarvis 1.x, streaming with high throughput.
    (f"{_OFFLINE} asr.ejrvs --chunk_size=0.8 --padding_factor=2 --padding_size=0.8", RUNS),
    # Citrinet, a whole file at once.
    (
        f"{_OFFLINE} citrinet.ejrvs --offline --streaming=False --ms_per_timestep=80 "
        "--chunk_size=300 --left_padding_size=0 --right_padding_size=0 "
        "--decoder_type=flashlight --flashlight_decoder.lm_weight=0.2 "
        "--flashlight_decoder.word_insertion_score=0.2 --flashlight_decoder.beam_threshold=20. "
        "--decoding_language_model_binary=lm.bin --decoding_vocab=vocab.txt",
        "option.planned",
    ),
    # Citrinet in chunks, greedy.
    (
        f"{_OFFLINE} citrinet.ejrvs --offline --chunk_size=1.6 --padding_size=1.6 "
        "--ms_per_timestep=80 --featurizer.use_utterance_norm_params=False "
        "--featurizer.precalc_norm_time_steps=0 --featurizer.precalc_norm_params=False "
        "--decoder_type=greedy --greedy_decoder.asr_model_delay=-1",
        RUNS,
    ),
    # Conformer, streaming with low latency.
    (
        f"{_OFFLINE} conformer.ejrvs --chunk_size=0.16 --left_padding_size=1.92 "
        "--right_padding_size=1.92 --ms_per_timestep=40 --nn.fp16_needs_obey_precision_pass "
        "--endpointing.start_history=200 --endpointing.residue_blanks_at_start=-2 "
        "--featurizer.use_utterance_norm_params=False --vad.residue_blanks_at_start=-2",
        RUNS,
    ),
    # Conformer and Parakeet, offline.
    (
        f"{_OFFLINE} conformer.ejrvs --offline --chunk_size=4.8 --left_padding_size=1.6 "
        "--right_padding_size=1.6 --max_batch_size=16 --featurizer.max_batch_size=512 "
        "--featurizer.max_execution_batch_size=512",
        RUNS,
    ),
    # Decoders that are not here.
    (
        f"{_OFFLINE} asr.ejrvs --offline --flashlight_decoder.beam_size=32 "
        "--flashlight_decoder.beam_size_token=64 --flashlight_decoder.num_tokenization=1 "
        "--flashlight_decoder.asr_model_delay=-1",
        "option.planned",
    ),
    (
        f"{_OFFLINE} asr.ejrvs --offline --decoding_language_model_fst=TLG.fst "
        "--decoding_language_model_words=words.txt --kaldi_decoder.default_beam=17.0 "
        "--kaldi_decoder.max_active=7000 --kaldi_decoder.determinize_lattice=true "
        "--kaldi_decoder.max_batch_size=1 --kaldi_decoder.asr_model_delay=5",
        "option.planned",
    ),
    (f"{_OFFLINE} asr.ejrvs --offline --os2s_decoder.beam_search_width=128", "option.planned"),
    (f"{_OFFLINE} asr.ejrvs --offline --gpu_decoder", "option.planned"),
    (f"{_OFFLINE} asr.ejrvs --offline --gpu_decoder=False", RUNS),
    (f"{_OFFLINE} asr.ejrvs --streaming=True", "option.planned"),
    (
        f"{_OFFLINE} asr.ejrvs --offline --wfst_tokenizer_model=tokenize_and_classify.far "
        "--wfst_verbalizer_model=verbalize.far --speech_hints_model=hints.far",
        "option.planned",
    ),
    # Voice activity, endpoints, engines.
    (
        f"{_OFFLINE} asr.ejrvs --offline --vad.vad_type=none --vad.vad_start_history=300 "
        "--vad.vad_start_th=0.2 --vad.vad_stop_history=1200 --vad.vad_stop_th=0.98 "
        "--endpointing.start_th=0.2 --endpointing.stop_history=800 --endpointing.stop_th=0.98 "
        "--endpointing.residue_blanks_at_end=0",
        RUNS,
    ),
    (
        f"{_OFFLINE} asr.ejrvs --offline --nn.use_trt_fp32 --nn.use_onnx_runtime "
        "--nn.max_batch_size=32 --nn.trt_max_workspace_size=4096 "
        "--return_separate_utterances=False --instance_group_count=1",
        RUNS,
    ),
    (f"{_OFFLINE} asr.ejrvs --offline --acoustic_model_name=am --featurizer_name=fe", RUNS),
    # Language pipelines.
    ("jarvis-build qa qa.jmir qa.ejrvs --name=qa_en", RUNS),
    ("jarvis-build token_classification ner.jmir ner.ejrvs --domain_name=weather", RUNS),
    ("jarvis-build text_classification domain.jmir domain.ejrvs --domain_name=topics", RUNS),
    ("jarvis-build intent_slot intent.jmir intent.ejrvs --domain_name=weather", RUNS),
    ("jarvis-build punctuation punct.jmir punct.ejrvs --language_code=en-US --name=p", RUNS),
    # Other spellings that argparse took.
    ("jarvis-build speech_recognition --offline asr.jmir asr.ejrvs", RUNS),
    ("jarvis-build speech_recognition asr.jmir --offline asr.ejrvs", RUNS),
    ("jarvis-build --offline speech_recognition asr.jmir asr.ejrvs", RUNS),
    ("jarvis-build --name qa speech_recognition asr.jmir asr.ejrvs --offline", RUNS),
    ("jarvis-build speech_recognition --streaming False asr.jmir asr.ejrvs", RUNS),
    ("jarvis-build speech_recognition --streaming=false --offline=TRUE asr.jmir asr.ejrvs", RUNS),
    ("jarvis-build speech_recognition --offl asr.jmir asr.ejrvs --lang de-DE", RUNS),
    ("jarvis-build speech_recognition --nn.use_trt asr.jmir asr.ejrvs --nn.max 16", RUNS),
    ("jarvis-build speech_recognition --name asr_en asr.jmir asr.ejrvs", RUNS),
    (
        "jarvis-build speech_recognition --greedy_decoder.asr_model_delay -1 asr.jmir asr.ejrvs",
        RUNS,
    ),
]

DEPLOYS = [
    ("jarvis-deploy asr.jmir models", RUNS),
    ("jarvis-deploy encrypted.jmir:tlt_encode models", RUNS),
    ("jarvis-deploy -f asr.jmir models", RUNS),
    ("jarvis-deploy asr.jmir models -f", RUNS),
    ("jarvis-deploy asr.jmir -f models", RUNS),
    ("jarvis-deploy --force -v asr.jmir models", RUNS),
    ("jarvis-deploy -f asr.jmir encrypted.jmir:tlt_encode models", RUNS),
    ("jarvis-deploy -f jmir models", RUNS),
    ("jarvis-deploy jmir models --for --gp cpu", RUNS),
    ("jarvis-deploy -h", RUNS),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(tmp_path, capsys, monkeypatch, cache):
    return Commands(tmp_path, capsys, monkeypatch, cache)


def require(run, line, outcome):
    command, *words = shlex.split(line)
    done = run(command, *words)
    assert "Traceback" not in done.stderr
    if outcome is RUNS:
        assert done.code == 0, done.stderr
    else:
        assert f" [{outcome}]\n" in done.stderr
        assert done.code in (1, 2, 3, 4)
        assert done.stderr.count("error: ") == 1
    return done


@pytest.mark.parametrize(("line", "outcome"), EXPORTS)
def test_exports(run, line, outcome):
    Path("NeMo").mkdir()
    Path("s.yaml").write_text("file_properties: [model_config.yaml, model_graph.onnx]\n")
    for place in re.findall(r"(NeMo/\w+)\.nemo", line):
        shutil.copy(MODELS / f"{CHECKPOINTS[place]}.nemo", f"{place}.nemo")
    done = require(run, line, outcome)
    if outcome is RUNS and done.stdout.endswith(".ejrvs\n"):
        assert Path(done.stdout.strip()).is_file()


def archives(run, line):
    """Make the archives that a line names."""
    for name, key in re.findall(r"(\w+)\.ejrvs(:\w+)?", line):
        model = CHECKPOINTS.get(name.removesuffix("_encrypted"))
        if model is not None:
            shutil.copy(MODELS / f"{model}.nemo", f"{name}.nemo")
            encrypted = ("--key", key[1:]) if key else ()
            run.ok("nemo2jarvis", *encrypted, f"{name}.nemo")


@pytest.mark.parametrize(("line", "outcome"), BUILDS)
def test_builds(run, line, outcome):
    named = re.search(r" (\w+) \w+\.jmir", line)
    is_here = (
        named is None or named[1] not in jarvis_build._OF_JARVIS or named[1] in pipeline_names()
    )
    if is_here:
        archives(run, line)
    done = require(run, line, outcome if is_here else "pipeline.planned")
    if outcome is RUNS and done.stdout.endswith(".jmir\n"):
        assert Path(done.stdout.strip()).is_file()


@pytest.mark.parametrize("line", [line for line, _ in BUILDS if " -h" not in line])
def test_every_word_of_a_build_is_understood(line):
    """Also where a file that it names is not there, or a value is refused."""
    name, rest = jarvis_build._split_pipeline(shlex.split(line)[1:])
    if name not in pipeline_names():
        assert name in jarvis_build._OF_JARVIS
        return
    kind = find_pipeline(name)
    parser = jarvis_build._parser(kind)
    arguments = parser.parse_args(bind_flags(parser, rest, kind.options))
    assert arguments.out.partition(":")[0].endswith(".jmir")
    types = {option.name: option for option in kind.options}
    for option, value in given_options(arguments).items():
        if types[option].effect != "used":
            types[option].parse(value)


@pytest.mark.parametrize(("line", "outcome"), DEPLOYS)
def test_deployments(run, line, outcome):
    run.ok("nemo2jarvis", "tiny.nemo")
    run.ok("jarvis-build", "speech_recognition", "asr.jmir", "tiny.ejrvs", "--name=one")
    if "encrypted" in line:
        run.ok("jarvis-build", "speech_recognition", "encrypted.jmir:tlt_encode", "tiny.ejrvs")
    Path("jmir").mkdir()
    shutil.copy("asr.jmir", "jmir/asr.jmir")
    done = require(run, line, outcome)
    if done.stdout == "models\n":
        assert list(Path("models").glob("*.repository.json"))
