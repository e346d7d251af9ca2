"""Manifests hold what the schemas of Kubernetes and of Compose let them hold, and nothing that these do not know."""

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

FARM = Path("tools/pools/farm")


def objects(name: str) -> list[Any]:
    """The documents of a manifest."""
    return list(yaml.safe_load_all((FARM / name).read_text()))


def kubernetes() -> dict[str, Any]:
    """Every object that Kubernetes itself knows; of a set of jobs, the Job that is in it."""
    every = objects("workers.yaml") + objects("training.yaml")
    (whole,) = objects("jobset.yaml")
    for each in whole["spec"]["replicatedJobs"]:
        every.append({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "of-a-set"}, **each["template"]})
    return {f"{each['kind']} {each['metadata']['name']}": each for each in every}


def validate(content: Any) -> None:
    kubernetes_validate.validate(content, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("name", kubernetes())
def test_kubernetes_knows_every_word_of_it(name: str) -> None:
    validate(kubernetes()[name])


def test_a_word_that_kubernetes_does_not_know_is_found() -> None:
    broken = copy.deepcopy(kubernetes()["Job plumbline-training"])
    broken["spec"]["template"]["spec"]["subdomains"] = "plumbline-training"
    with pytest.raises(kubernetes_validate.ValidationError, match="subdomains"):
        validate(broken)


@pytest.fixture(scope="module")
def compose_schema() -> Any:
    """The schema in check-jsonschema, none of whose code is imported."""
    spec = importlib.util.find_spec("check_jsonschema")
    assert spec is not None
    assert spec.submodule_search_locations
    return json.loads(Path(spec.submodule_search_locations[0], "builtin_schemas/vendor/compose-spec.json").read_text())


def test_compose_knows_every_word_of_it_and_finds_one_that_it_does_not(compose_schema) -> None:
    (content,) = objects("compose.yaml")
    jsonschema.validate(content, compose_schema)
    content["services"]["runner-cpu"]["read_onyl"] = True
    with pytest.raises(jsonschema.ValidationError, match="read_onyl"):
        jsonschema.validate(content, compose_schema)
