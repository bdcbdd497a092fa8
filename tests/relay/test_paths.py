import pytest

from rolemesh.config import tree
from rolemesh.config.taken_paths import check_added_paths
from rolemesh.relay.edit import RequestBody
from rolemesh.relay.paths import INFERENCE_PATHS, inference_paths
from rolemesh.relay.replies import Dialect


@pytest.mark.parametrize(
    ("upstream_path", "paths"),
    [
        ("/v1/chat/completions", {"/chat/completions"}),
        ("/v1/completions", {"/completions"}),
        ("/v1/embeddings", {"/embeddings"}),
        ("/v1/rerank", {"/rerank", "/reranking", "/v1/reranking"}),
        ("/v1/responses", {"/responses"}),
        ("/v1/responses/input_tokens", {"/responses/input_tokens"}),
        ("/v1/messages", {"/messages"}),
        ("/v1/messages/count_tokens", {"/messages/count_tokens"}),
        ("/tokenize", {"/v1/tokenize"}),
        ("/detokenize", {"/v1/detokenize"}),
        ("/apply-template", {"/v1/apply-template"}),
    ],
)
def test_every_kind_can_be_asked_for_with_and_without_the_version(
    upstream_path: str, paths: set[str]
) -> None:
    asked = {path for path, kind in INFERENCE_PATHS.items() if kind.upstream_path == upstream_path}
    assert asked == paths | {upstream_path}


@pytest.mark.parametrize(
    ("path", "body", "slots"),
    [
        ("/v1/chat/completions", b'{"n":2}', 2),
        ("/v1/completions", b'{"n":2,"prompt":["a","b"]}', 4),
        ("/v1/completions", b'{"n_cmpl":3}', 3),
        ("/v1/responses", b'{"n":2,"input":["a","b","c"]}', 2),
        ("/v1/embeddings", b'{"n":2,"input":["a","b","c"]}', 3),
        ("/v1/rerank", b'{"documents":["a","b","c"],"query":"q"}', 3),
        ("/v1/rerank", b'{"texts":["a","b"],"query":"q"}', 2),
        ("/v1/messages", b'{"n":2,"messages":[]}', 1),
        ("/v1/messages/count_tokens", b"{}", 0),
        ("/v1/responses/input_tokens", b"{}", 0),
        ("/tokenize", b'{"content":["a","b"],"n":9999}', 0),
        ("/detokenize", b"{}", 0),
        ("/apply-template", b"{}", 0),
    ],
)
def test_a_request_costs_the_slots_that_llama_server_takes_for_it(
    path: str, body: bytes, slots: int
) -> None:
    assert INFERENCE_PATHS[path].cost(RequestBody.parse(body)) == slots


def test_only_anthropic_s_paths_speak_its_dialect() -> None:
    speakers = {path for path, kind in INFERENCE_PATHS.items() if kind.dialect is Dialect.ANTHROPIC}
    assert speakers == {
        *("/v1/messages", "/messages", "/v1/messages/count_tokens", "/messages/count_tokens")
    }


def test_an_operator_s_own_path_goes_upstream_as_it_is() -> None:
    paths = inference_paths({"/infill": 1, "/v1/classify": 0})
    assert paths["/infill"].upstream_path == "/infill"
    assert paths["/infill"].cost(RequestBody.parse(b'{"n": 4}')) == 1
    assert paths["/v1/classify"].cost(RequestBody.parse(b"{}")) == 0
    assert paths.items() > INFERENCE_PATHS.items()


def test_an_operator_s_own_path_never_takes_the_place_of_another() -> None:
    assert inference_paths({"/v1/completions": 0}) == INFERENCE_PATHS


def test_an_operator_is_told_of_each_path_that_is_there_already() -> None:
    added = tree.nested(("paths",), {}, tree.Origin("f"))
    entries = {path: tree.empty("f") for path in INFERENCE_PATHS}
    added = tree.Node(
        value={"paths": tree.Node(value=entries, origin=added.origin)}, origin=added.origin
    )
    told = {finding.path[-1] for finding in check_added_paths(added)}
    assert told == INFERENCE_PATHS.keys()
