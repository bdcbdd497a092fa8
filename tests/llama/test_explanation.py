"""The one line that says why a llama-server ended; logs as llama.cpp's builds write them."""

import signal

import pytest

from rolemesh.llama.explanation import explain, explain_end

ARCHITECTURE = """\
0.00.027.951 I srv    load_model: loading model 'arch.gguf'
0.00.013.273 E llama_model_load: error loading model: unknown model architecture: 'lamma'
0.00.013.293 E llama_model_load_from_file_impl: failed to load model
0.00.013.013 E common_fit_params: encountered an error while trying to fit params to free device \
memory: failed to load model
0.00.013.313 E srv    load_model: failed to load model, 'arch.gguf'
0.00.013.677 E srv  llama_server: exiting due to model loading error
"""
NO_MEMORY = """\
0.00.012.699 E llama_init_from_model: failed to initialize the context: std::bad_alloc
0.00.014.093 E srv    load_model: failed to create_context with model 'tiny-a.gguf'
0.00.014.355 E srv  llama_server: exiting due to model loading error
"""
NO_CPU_BUFFER = """\
alloc_tensor_range: failed to allocate CPU_REPACK buffer of size 8388608000
0.01.100.000 E llama_model_load: error loading model: unable to allocate CPU_REPACK buffer
"""
CUDA_WEIGHTS = """\
1.20.012.699 E ggml_backend_cuda_buffer_type_alloc_buffer: allocating 8000.00 MiB on device 0: \
cudaMalloc failed: out of memory
1.20.012.799 E alloc_tensor_range: failed to allocate CUDA0 buffer of size 8388608000
1.20.012.899 E llama_model_load: error loading model: unable to allocate CUDA0 buffer
1.20.014.355 E srv  llama_server: exiting due to model loading error
"""
CUDA_KV = """\
llama_kv_cache: failed to allocate buffer for kv cache
alloc_tensor_range: failed to allocate CUDA0 buffer of size 1879048192
llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache
"""
CUDA_LATER = (
    """\
CUDA error: out of memory
  current device: 0, in function alloc at ggml-cuda.cu:406
  cuMemCreate(&handle, reserve_size, &prop, 0)
ggml-cuda.cu:132: CUDA error
[New LWP 16269]
Could not attach to process.  If your uid matches the uid of the target
ptrace: Operation not permitted.
"""
    + "#1  0x000055f2b80f1639 in ggml_abort ()\n" * 60
)
ROCM = """\
ROCm error: out of memory
  current device: 0, in function ggml_cuda_op_mul_mat at ggml-cuda.cu:1567
/src/ggml/src/ggml-cuda/ggml-cuda.cu:88: ROCm error
"""
VULKAN = """\
ggml_vulkan: Device memory allocation of size 1879048192 failed.
ggml_vulkan: vk::Device::allocateMemory: ErrorOutOfDeviceMemory
llama_kv_cache_init: failed to allocate buffer for kv cache
"""
NO_KERNEL = """\
ggml_cuda_compute_forward: RMS_NORM failed
CUDA error: no kernel image is available for execution on the device
  current device: 0, in function ggml_cuda_compute_forward at ggml-cuda.cu:2368
  err
"""
ILLEGAL_ACCESS = """\
CUDA error: an illegal memory access was encountered
  current device: 0, in function ggml_backend_cuda_synchronize at ggml-cuda.cu:2446
  cudaStreamSynchronize(cuda_ctx->stream())
ggml-cuda.cu:88: CUDA error
"""
CUT_OFF = """\
0.00.011.854 E llama_model_load: error loading model: tensor 'token_embd.weight' data is not \
within the file bounds, model is corrupted or incomplete
0.00.011.870 E llama_model_load_from_file_impl: failed to load model
0.00.012.148 E cmn  common_init_: failed to load model 'cut3.gguf'
"""
CUT_OFF_EARLY = """\
0.00.014.095 E gguf_init_from_reader: failed to read key-value pairs
0.00.014.103 E llama_model_load: error loading model: llama_model_loader: failed to load model \
from cut1.gguf
"""
GARBAGE = """\
0.00.011.876 E read: string length 7436294106996576728 exceeds maximum 1073741824
0.00.011.919 E gguf_init_from_reader: failed to read tensor info
0.00.011.924 E llama_model_load: error loading model: llama_model_loader: failed to load model
"""
LESS_TENSORS = """\
llama_model_load: error loading model: check_tensor_dims: tensor 'blk.0.attn_q.weight' not found
llama_model_load_from_file_impl: failed to load model
"""
DELETED = """\
0.00.012.647 E gguf_init_from_file: failed to open GGUF file '/m/gone.gguf' (No such file or \
directory)
0.00.012.652 E llama_model_load: error loading model: llama_model_loader: failed to load model \
from /m/gone.gguf
"""
DELETED_ADAPTER = """\
0.00.053.237 E llama_adapter_lora_init: failed to open 'gone.gguf': No such file or directory
0.00.053.258 E cmn  common_init_: failed to load lora adapter 'gone.gguf'
"""
ABORT = "/src/ggml.c:12: GGML_ASSERT(a->ne[0] == b) failed\n[New LWP 12]\n0x00 in wait4 ()\n"
LIBRARY = "llama-server: error while loading shared libraries: libx.so: cannot open shared object \
file: No such file or directory\n"


@pytest.mark.parametrize(
    ("log", "explanation"),
    [
        (
            ARCHITECTURE,
            "unsupported architecture (a newer llama.cpp may know it): llama_model_load: error "
            "loading model: unknown model architecture: 'lamma'",
        ),
        (
            "error loading model vocabulary: unknown pre-tokenizer type: 'new'\n",
            "unsupported model (a newer llama.cpp may know it): error loading model vocabulary: "
            "unknown pre-tokenizer type: 'new'",
        ),
        (
            NO_MEMORY,
            "out of memory: llama_init_from_model: failed to initialize the context: "
            "std::bad_alloc",
        ),
        (
            NO_CPU_BUFFER,
            "out of memory: llama_model_load: error loading model: unable to allocate CPU_REPACK "
            "buffer",
        ),
        (
            CUDA_WEIGHTS,
            "out of GPU memory: ggml_backend_cuda_buffer_type_alloc_buffer: allocating 8000.00 MiB "
            "on device 0: cudaMalloc failed: out of memory",
        ),
        (
            CUDA_KV,
            "out of GPU memory: alloc_tensor_range: failed to allocate CUDA0 buffer of size "
            "1879048192",
        ),
        (CUDA_LATER, "out of GPU memory: CUDA error: out of memory"),
        (ROCM, "out of GPU memory: ROCm error: out of memory"),
        (
            VULKAN,
            "out of GPU memory: ggml_vulkan: vk::Device::allocateMemory: ErrorOutOfDeviceMemory",
        ),
        (
            NO_KERNEL,
            "the GPU is not supported by this build of llama.cpp: CUDA error: no kernel image is "
            "available for execution on the device",
        ),
        (
            ILLEGAL_ACCESS,
            "the GPU or its driver failed: CUDA error: an illegal memory access was encountered",
        ),
        (
            CUT_OFF,
            "corrupt or incomplete model file: llama_model_load: error loading model: tensor "
            "'token_embd.weight' data is not within the file bounds, model is corrupted or "
            "incomplete",
        ),
        (
            CUT_OFF_EARLY,
            "corrupt or incomplete model file: gguf_init_from_reader: failed to read key-value "
            "pairs",
        ),
        (
            GARBAGE,
            "corrupt or incomplete model file: read: string length 7436294106996576728 exceeds "
            "maximum 1073741824",
        ),
        (
            LESS_TENSORS,
            "corrupt or incomplete model file: llama_model_load: error loading model: "
            "check_tensor_dims: tensor 'blk.0.attn_q.weight' not found",
        ),
        (
            DELETED,
            "a file is missing: gguf_init_from_file: failed to open GGUF file '/m/gone.gguf' (No "
            "such file or directory)",
        ),
        (
            DELETED_ADAPTER,
            "a file is missing: llama_adapter_lora_init: failed to open 'gone.gguf': No such file "
            "or directory",
        ),
        (
            "failed to save slot: write error: No space left on device\n",
            "the disk is full: failed to save slot: write error: No space left on device",
        ),
        (ABORT, "it crashed: /src/ggml.c:12: GGML_ASSERT(a->ne[0] == b) failed"),
        ("error: invalid argument: --nonsense\n", "error: invalid argument: --nonsense"),
        (LIBRARY, LIBRARY.strip()),
        (
            "0.00.001.000 I srv  llama_server: initializing ...\n\n",
            "srv llama_server: initializing ...",
        ),
        ("", ""),
        ("tab\there \x1b[31mred\x1b[0m", "tab here [31mred [0m"),
    ],
)
def test_the_line_that_explains_is_found(log: str, explanation: str) -> None:
    assert explain(log.splitlines()) == explanation


def test_what_clients_were_told_explains_nothing() -> None:
    lines = (
        "0.00.540.478 E srv    send_error: task id = 201, error: request (5402 tokens) exceeds the "
        "available context size (4096 tokens), try increasing it",
        "0.00.540.514 W srv          stop: cancel task, id_task = 201",
    )
    assert explain(lines) == ""


@pytest.mark.parametrize(
    ("number", "lines", "explanation"),
    [
        (signal.SIGKILL, ("slot release: id 0 | task 7",), "it was ended from outside"),
        (signal.SIGTERM, (), ""),
        (signal.SIGBUS, (), "a model file was cut off while it was in use, or its disk failed"),
        (
            signal.SIGILL,
            ("llama_server: initializing",),
            "this build of llama.cpp needs a processor with more instructions: llama_server: "
            "initializing",
        ),
        (
            signal.SIGABRT,
            CUDA_LATER.splitlines(),
            "out of GPU memory: CUDA error: out of memory",
        ),
    ],
)
def test_a_signal_has_a_meaning_unless_the_log_knows_better(
    number: int, lines: tuple[str, ...], explanation: str
) -> None:
    assert explain_end(-number, lines, oom_killed=False) == explanation


def test_a_kill_by_the_kernel_is_told_from_others() -> None:
    assert explain_end(-signal.SIGKILL, ("all well",), oom_killed=True).startswith("out of memory:")
    assert explain_end(-signal.SIGSEGV, (), oom_killed=True) == "it crashed"


def test_a_frame_of_a_stack_explains_less_than_the_assertion_above_it() -> None:
    lines = [
        "./src/llama-context.cpp:2384: GGML_ASSERT(n_outputs_max <= n_outputs) failed",
        "#4 0x00007f95cdf76a11 in ggml_print_backtrace () from libggml-base.so.0",
        "#5 0x00007f95cdf76b2e in ggml_abort () from libggml-base.so.0",
    ]
    assert explain_end(-6, lines, oom_killed=False).endswith(
        "./src/llama-context.cpp:2384: GGML_ASSERT(n_outputs_max <= n_outputs) failed"
    )
