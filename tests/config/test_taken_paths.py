import pytest

from rolemesh.config.taken_paths import check_added_paths
from tests.config.conftest import Parse


def findings(parse: Parse, *paths: str) -> list[str]:
    root = parse("paths:\n" + "".join(f"  {path}: {{slots: 1}}\n" for path in paths))
    return [str(finding.problem()) for finding in check_added_paths(root)]


def test_paths_of_nobody_are_free(parse: Parse) -> None:
    assert (
        findings(parse, "/infill", "/v1/infill", "/v1/modelsx", "/completion", "/v2/rerank") == []
    )
    assert list(check_added_paths(parse("listen: {port: 1}"))) == []


@pytest.mark.parametrize(
    "path",
    [
        "/health",
        "/ready",
        "/metrics",
        "/models",
        "/v1/models",
        "/v1/models/coder",
        "/v1/nodes/register",
        "/v1/nodes/box/heartbeat",
        "/v1/node",
        "/v1/node/models/x/load",
        "/v1/rolemesh",
        "/v1/rolemesh/status",
        "/ui",
        "/ui/x",
    ],
)
def test_what_rolemesh_answers_itself_is_not_given_away(parse: Parse, path: str) -> None:
    assert findings(parse, path) == [
        f'f.yaml:2: paths."{path}": is answered by RoleMesh itself; expected another path'
    ]


def test_what_is_relayed_anyway_is_said_to_be(parse: Parse) -> None:
    assert findings(parse, "/v1/messages") == [
        'f.yaml:2: paths."/v1/messages": is relayed anyway; remove it'
    ]
