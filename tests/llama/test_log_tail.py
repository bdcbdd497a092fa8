"""Lines out of a byte stream, and the one of them that explains an end."""

import pytest

from rolemesh.llama.log_tail import KEPT_LINES, MAX_LINE_BYTES, LogTail


def tail_of(text: str) -> LogTail:
    tail = LogTail()
    tail.feed(text.encode())
    tail.end()
    return tail


def test_lines_are_passed_on_whole_and_unchanged() -> None:
    tail = LogTail()
    assert tail.feed(b"one\ntw") == b"one\n"
    assert tail.feed(b"o\xff\n\nthree") == b"two\xff\n\n"
    assert tail.end() == b"three\n"
    assert tail.end() == b""
    assert tail.lines() == ("one", "two\N{REPLACEMENT CHARACTER}", "", "three")


def test_only_the_last_lines_are_kept_but_all_are_counted() -> None:
    tail = tail_of("".join(f"{number}\n" for number in range(KEPT_LINES * 3)))
    assert len(tail.lines()) == KEPT_LINES
    assert tail.lines()[-1] == str(KEPT_LINES * 3 - 1)
    assert tail.line_count == KEPT_LINES * 3


def test_lines_about_our_own_checks_are_kept_but_not_counted() -> None:
    tail = tail_of('loading\nrequest: "GET /health HTTP/1.1" 503\n')
    assert (len(tail.lines()), tail.line_count) == (2, 1)


def test_a_line_without_an_end_does_not_grow_without_bound() -> None:
    tail = LogTail()
    passed = tail.feed(b"x" * (3 * MAX_LINE_BYTES + 1))
    assert len(passed) == 3 * (MAX_LINE_BYTES + 1)
    assert {len(line) for line in tail.lines()} == {MAX_LINE_BYTES}


ARCHITECTURE = """\
0.00.027.951 I srv    load_model: loading model 'arch.gguf'
0.00.028.691 E llama_model_load: error loading model: unknown model architecture: 'lamma'
0.00.028.710 E llama_model_load_from_file_impl: failed to load model
0.00.029.006 I srv    operator(): operator(): cleaning up before exit...
0.00.029.214 E srv  llama_server: exiting due to model loading error
"""
MEMORY = """\
0.00.012.699 E llama_init_from_model: failed to initialize the context: std::bad_alloc
0.00.014.093 E srv    load_model: failed to create_context with model 'tiny-a.gguf'
0.00.014.355 E srv  llama_server: exiting due to model loading error
"""
CUDA = """\
1.20.012.699 E ggml_backend_cuda_buffer_type_alloc_buffer: allocating 8000.00 MiB on device 0: \
cudaMalloc failed: out of memory
1.20.012.799 E alloc_tensor_range: failed to allocate CUDA0 buffer of size 8388608000
1.20.014.355 E srv  llama_server: exiting due to model loading error
"""
ABORT = "/src/ggml.c:12: GGML_ASSERT(a->ne[0] == b) failed\n[New LWP 12]\n0x00 in wait4 ()\n"


@pytest.mark.parametrize(
    ("log", "explanation"),
    [
        (
            ARCHITECTURE,
            "llama_model_load: error loading model: unknown model architecture: 'lamma'",
        ),
        (MEMORY, "llama_init_from_model: failed to initialize the context: std::bad_alloc"),
        (CUDA, "alloc_tensor_range: failed to allocate CUDA0 buffer of size 8388608000"),
        (ABORT, "/src/ggml.c:12: GGML_ASSERT(a->ne[0] == b) failed"),
        ("error: invalid argument: --nonsense\n", "error: invalid argument: --nonsense"),
        ("a b\nllama-server: error while loading shared libraries: libx.so\nend\n", None),
        (
            "0.00.001.000 I srv  llama_server: initializing ...\n\n",
            "srv llama_server: initializing ...",
        ),
        ("", ""),
        ("tab\there \x1b[31mred\x1b[0m", "tab here [31mred [0m"),
    ],
)
def test_the_line_that_explains_is_found(log: str, explanation: str | None) -> None:
    expected = log.splitlines()[1] if explanation is None else explanation
    assert tail_of(log).explanation() == expected


def test_each_line_is_passed_on_after_the_prefix() -> None:
    tail = LogTail("gpu0: ")

    assert tail.feed(b"one\ntw") == b"gpu0: one\n"
    assert tail.feed(b"o\n") == b"gpu0: two\n"
    assert tail.lines() == ("one", "two")
