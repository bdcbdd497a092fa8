"""The recipe for containers: built from a Debian of the lab, run as compose.yaml says, and asked."""

import json
import shutil
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.lab.host_root import NoRoot, cached_archive
from tests.lab.llama_server import NoLlamaServer, llama_server_seen_at
from tests.lab.models import TinyModel, make_model
from tests.lab.tool_root import obstacle, run_in, tool_root

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "packaging/oci"
MODEL = TinyModel(name="container-tiny", says="From within a container .")


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Return what each step of run_compose.sh said, by its name."""
    if reason := obstacle():
        pytest.skip(reason)
    try:
        archive, (llama, _), root = (
            cached_archive("trixie"),
            llama_server_seen_at(Path("/app")),
            tool_root(),
        )
    except (NoRoot, NoLlamaServer) as err:
        pytest.skip(str(err))
    model = make_model(MODEL)
    folders = {name: tmp_path_factory.mktemp(name) for name in ("results", "containers")}
    done = run_in(
        root,
        *("/source/tests/packaging/run_compose.sh", f"/base/{archive.name}", model.name),
        reads={"/source": ROOT, "/base": archive.parent, "/app": llama, "/models": model.parent},
        writes={"/results": folders["results"], "/var/lib/containers": folders["containers"]},
    )
    shutil.rmtree(folders["containers"])
    said = {path.name: path.read_text() for path in folders["results"].iterdir()}
    assert done.returncode == 0, f"{done.stdout}\n{said}"
    return said


def test_a_chat_is_answered_by_a_model_in_a_container(said: Mapping[str, str]) -> None:
    answer = json.loads(said["answer"])
    assert answer["choices"][0]["message"]["content"] == MODEL.says


def test_the_gateway_asks_for_the_key_of_the_secret(said: Mapping[str, str]) -> None:
    assert json.loads(said["models"])["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("name", ["gateway", "node"])
def test_the_health_check_asks_the_daemon(said: Mapping[str, str], name: str) -> None:
    assert said[f"{name}.health"] == ""


@pytest.mark.parametrize("name", ["gateway", "node"])
def test_a_daemon_has_no_rights(said: Mapping[str, str], name: str) -> None:
    status = dict(line.split(":\t", 1) for line in said[f"{name}.rights"].splitlines())
    assert status["Uid"].split() == ["1234"] * 4
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == 0, kind
    assert status["NoNewPrivs"] == "1"
    assert said[f"{name}.write"].count("Read-only file system") == 2


def test_operators_reach_the_gateway_in_its_container(said: Mapping[str, str]) -> None:
    assert "1 of 1 usable" in said["status"]
    assert "http://node:8100" in said["status"]


def test_state_is_kept_in_the_volume(said: Mapping[str, str]) -> None:
    assert "/var/lib/rolemesh/gateway/" in said["state"]


@pytest.mark.parametrize("name", ["gateway", "node"])
def test_nobody_is_warned_of_the_recipe_itself(said: Mapping[str, str], name: str) -> None:
    warnings = [line for line in said[f"{name}.log"].splitlines() if " WARNING " in line]
    # What is built here is for those without NVIDIA's GPUs.
    assert [line for line in warnings if "NVML" not in line] == []


def test_the_file_is_what_the_specification_of_compose_says() -> None:
    vendored = resources.files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json"
    schema = json.loads(vendored.read_text())
    tree = yaml.safe_load((RECIPE / "compose.yaml").read_text())
    jsonschema.validate(tree, schema)
