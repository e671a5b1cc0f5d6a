"""The numeric check: what it compares, what it says it did not, and that it catches damage."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from jarvis_rules.core.gpus import find_gpu
from jarvis_rules.errors import JarvisError
from jarvis_rules.formats.archive import open_archive
from jarvis_rules.formats.engine_inputs import load_precision_hints
from jarvis_rules.onnx_graph.precision import convert_precision
from jarvis_rules.tools.engine_build import build_engines
from jarvis_rules.tools.engine_check import check_engines

NAME = "acoustic_model"
GRAPH = "model_graph.onnx"


class Workplace:
    """A folder as an action has it: the inputs of the golden pipeline, and outputs."""

    def __init__(self, root, jmir):
        self.root = root
        (root / "outputs").mkdir()
        (root / "inputs" / NAME).mkdir(parents=True)
        with open_archive(jmir) as archive:
            for member in (GRAPH, "inputs.json", "precision_hints.json"):
                archive.extract(f"{NAME}/{member}", root / "inputs" / NAME / member)
        self.exported = root / "inputs" / NAME / GRAPH
        self.compiled = self.exported
        self.precision = "fp32"

    def convert(self, precision):
        hints = (self.exported.parent / "precision_hints.json").read_bytes()
        self.compiled = self.root / "inputs" / "graphs" / NAME / GRAPH
        self.compiled.parent.mkdir(parents=True)
        convert_precision(
            self.exported, self.compiled, precision, load_precision_hints(hints, "hints")
        )

    def build(self, precision="fp32", **options):
        self.precision = precision
        build_engines(
            {
                "toolchain": "onnxruntime",
                "gpu": find_gpu("cpu").to_json(),
                "engines": {
                    NAME: {
                        "graph": str(self.compiled.relative_to(self.root)),
                        "precision": precision,
                        "options": options,
                        "inputs": None,
                    }
                },
                "timing_cache": None,
            }
        )
        shutil.move("outputs/engines.json", "inputs/engines.json")
        shutil.move("outputs/engines", "inputs/engines")

    def check(self, *, execute=True):
        check_engines(
            {
                "engines": "inputs/engines.json",
                "engine_files": "inputs/engines",
                "graphs": {
                    NAME: {
                        "exported": str(self.exported.relative_to(self.root)),
                        "compiled": str(self.compiled.relative_to(self.root)),
                        "inputs": f"inputs/{NAME}/inputs.json",
                        "rounded_as": self.precision,
                    }
                },
                "execute": execute,
            }
        )
        return json.loads((self.root / "outputs/check.json").read_bytes())["engines"][NAME]


@pytest.fixture
def workplace(tmp_path, jmir, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Workplace(tmp_path, jmir)


def test_the_exported_graph_itself_needs_no_comparison(workplace):
    workplace.build()
    assert workplace.check() == {
        "precision": "fp32",
        "comparisons": [],
        "not_compared": "the engine is the exported graph",
    }


def test_an_optimised_engine_is_compared(workplace, capsys):
    workplace.build(graph_optimization="extended")
    report = workplace.check()
    (comparison,) = report["comparisons"]
    assert (comparison["what"], comparison["with"]) == ("engine", "onnxruntime")
    assert [output["name"] for output in comparison["outputs"]] == ["encoded_length", "logprobs"]
    assert report["not_compared"] is None
    assert "acoustic_model: engine with onnxruntime: `logprobs` off by " in capsys.readouterr().out


def test_half_precision_is_compared_honestly_and_as_it_runs(workplace):
    workplace.convert("fp16")
    workplace.build("fp16")
    found = [(c["what"], c["with"]) for c in workplace.check()["comparisons"]]
    assert found == [("graph", "onnx.reference"), ("engine", "onnxruntime")]


def test_what_cannot_execute_here_is_said_to_be_so(workplace):
    workplace.convert("fp16")
    workplace.build("fp16")
    manifest = workplace.root / "inputs/engines.json"
    document = json.loads(manifest.read_bytes())
    document["engines"][NAME]["toolchain"] = "tensorrt_rtx"
    manifest.write_text(json.dumps(document))
    report = workplace.check(execute=False)
    assert [c["what"] for c in report["comparisons"]] == ["graph"]
    assert report["not_compared"].startswith("not executed: this machine cannot run an engine of")


def damage_weight(model):
    """Scale the largest weight, as a conversion that mistook a type would."""
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(values * 4, weight.name))


def damage_length(model):
    """Count one frame more."""
    (node,) = (node for node in model.graph.node if "encoded_length" in node.output)
    node.output[0] = "before_damage"
    for reader in model.graph.node:
        for place, name in enumerate(reader.input):
            if name == "encoded_length":
                reader.input[place] = "before_damage"
    one = numpy_helper.from_array(np.array(1, np.int64), "one_more")
    model.graph.initializer.append(one)
    model.graph.node.append(
        onnx.helper.make_node("Add", ["before_damage", "one_more"], ["encoded_length"], "damage")
    )


def damage_to_nan(model):
    """Divide by a sum that has vanished."""
    (node,) = (node for node in model.graph.node if "logprobs" in node.output)
    node.output[0] = "before_damage"
    model.graph.node.extend(
        [
            onnx.helper.make_node("Sub", ["before_damage", "before_damage"], ["nothing"], "a"),
            onnx.helper.make_node("Div", ["nothing", "nothing"], ["logprobs"], "b"),
        ]
    )


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")
@pytest.mark.parametrize(
    ("damage", "output"),
    [(damage_weight, "logprobs"), (damage_length, "encoded_length"), (damage_to_nan, "logprobs")],
)
def test_a_broken_conversion_is_caught_and_the_worst_output_named(workplace, damage, output):
    workplace.convert("fp16")
    model = onnx.load(workplace.compiled)
    damage(model)
    onnx.save(model, workplace.compiled)
    workplace.build("fp16")
    with pytest.raises(JarvisError, match=f"the graph is not what was exported: output `{output}`"):
        workplace.check()
    assert not (workplace.root / "outputs/check.json").exists()
