from rolemesh.relay.paths import INFERENCE_PATHS


def test_every_kind_can_be_asked_for_with_and_without_the_version() -> None:
    assert {path: kind.upstream_path for path, kind in INFERENCE_PATHS.items()} == {
        "/v1/chat/completions": "/v1/chat/completions",
        "/chat/completions": "/v1/chat/completions",
        "/v1/completions": "/v1/completions",
        "/completions": "/v1/completions",
        "/v1/embeddings": "/v1/embeddings",
        "/embeddings": "/v1/embeddings",
    }
