"""The option `execution_env_path`: which models get the parameter, and with which value."""

from __future__ import annotations

import pytest

from jarvis_rules.errors import UsageError
from jarvis_rules.pipelines._execution_environment import environment_parameters
from jarvis_rules.pipelines.pipeline import find_pipeline, pipeline_names


def parameters(kind, **given):
    pipeline = find_pipeline(kind)
    return environment_parameters(pipeline.values(pipeline.parse_options(given)))


@pytest.mark.parametrize("kind", pipeline_names())
def test_every_pipeline_has_it_and_by_default_nothing_is_written(kind):
    assert parameters(kind) == {}
    assert parameters(kind, execution_env_path="/x.tar.gz") == {"EXECUTION_ENV_PATH": "/x.tar.gz"}


@pytest.mark.parametrize(
    ("path", "written"),
    [
        ("/srv/models/runtime-env.tar.gz", "/srv/models/runtime-env.tar.gz"),
        ("runtime-env.tar.gz", "$$TRITON_MODEL_DIRECTORY/../runtime-env.tar.gz"),
        ("envs/a.tar.gz", "$$TRITON_MODEL_DIRECTORY/../envs/a.tar.gz"),
    ],
)
def test_a_relative_path_starts_at_the_repository(path, written):
    assert parameters("qa", execution_env_path=path) == {"EXECUTION_ENV_PATH": written}


@pytest.mark.parametrize("path", ["../env.tar.gz", "/srv/../env.tar.gz", "a/../env.tar.gz"])
def test_a_path_that_links_could_turn_elsewhere_is_refused(path):
    with pytest.raises(UsageError, match=r"has `\.\.` in it") as caught:
        parameters("qa", execution_env_path=path)
    assert caught.value.slug == "option.invalid"
    assert caught.value.where == "option `execution_env_path`"
