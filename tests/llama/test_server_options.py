"""What a llama-server says of its options, and arguments that do not fit it."""

import pytest

from rolemesh.llama.server_options import UNKNOWN_BUILD, ServerBuild, read_build, wrong_arguments

# Lines as llama-server 0.7.0 prints them.
HELP = """\
ggml_cuda_init: found 1 CUDA devices:
----- common params -----

-h,    --help, --usage                  print usage and exit
-c,    --ctx-size N                     size of the prompt context (default: 0, 0 = loaded from model)
                                        (env: LLAMA_ARG_CTX_SIZE)
-fa,   --flash-attn [on|off|auto]       set Flash Attention use ('on', 'off', or 'auto', default: 'auto')
                                        (env: LLAMA_ARG_FLASH_ATTN)
-kvo,  --kv-offload, -nkvo, --no-kv-offload
                                        whether to enable KV cache offloading (default: enabled)
-ctk,  --cache-type-k TYPE              KV cache data type for K
                                        allowed values: f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0,
                                        q5_1
                                        (default: f16)
-ot,   --override-tensor <tensor name pattern>=<buffer type>,...
                                        override tensor buffer type
-sm,   --split-mode {none,layer,row,tensor}
                                        how to split the model across multiple GPUs, one of:
                                        - none: use one GPU only
--control-vector-layer-range START END
                                        layer range to apply the control vector(s) to, start and end inclusive
-m,    --model FNAME                    model path to load
--lora-scaled FNAME:SCALE,...           path to LoRA adapter with user defined scaling (format:
                                        FNAME:SCALE,...)
--draft, --draft-n, --draft-max N       the argument has been removed. use --spec-draft-n-max or
                                        --spec-ngram-mod-n-max
                                        (env: LLAMA_ARG_DRAFT_MAX)


----- example-specific params -----

--host HOST                             IP addresses to listen on
--port PORT                             port to listen (default: 9931)
--chat-template JINJA_TEMPLATE          set custom jinja chat template
                                        list of built-in templates:
                                        bailing, chatml, command-r, granite-4.0, llama2,
                                        zephyr
                                        (env: LLAMA_ARG_CHAT_TEMPLATE)
"""
VERSION = "version: 0.7.0 (build 11669, commit Debian)\nbuilt with GNU 16.2.0 for Linux x86_64\n"


@pytest.fixture(scope="module")
def build() -> ServerBuild:
    return read_build(HELP, VERSION)


def test_options_are_known_by_all_their_names(build: ServerBuild) -> None:
    assert build.name == "llama-server 0.7.0 (build 11669)"
    names = ("-nkvo", "--no-kv-offload", "-h", "--usage", "--ctx_size", "-ot")
    assert [name for name in names if build.option(name) is None] == []
    assert build.option("--draft-max") is None
    assert build.choose(("--spec-draft-n-max", "--draft-max")) is None
    assert build.choose(("--nothing", "-c")) == "-c"
    assert build.chat_templates[:2] == ("bailing", "chatml")
    assert build.chat_templates[-1] == "zephyr"


@pytest.mark.parametrize(
    ("name", "count", "allowed"),
    [
        ("-h", 0, ()),
        ("-c", 1, ()),
        ("-fa", 1, ()),
        ("-nkvo", 0, ()),
        ("-ctk", 1, ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")),
        ("-ot", 1, ()),
        ("-sm", 1, ("none", "layer", "row", "tensor")),
        ("--control-vector-layer-range", 2, ()),
    ],
)
def test_what_an_option_takes_is_known(
    build: ServerBuild, name: str, count: int, allowed: tuple[str, ...]
) -> None:
    option = build.option(name)
    assert option is not None
    assert (option.value_count, option.allowed) == (count, allowed)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("version: 4589 (eb7cf15a)\nbuilt with cc", "4589 (eb7cf15a)"),
        ("ggml_cuda_init: x\nversion: 5.1", "5.1"),
        ("no idea", ""),
    ],
)
def test_a_version_is_what_the_program_calls_it(text: str, version: str) -> None:
    assert read_build(HELP, text).version == version


@pytest.mark.parametrize(
    "text", ["", "usage: ls [OPTION]...\n-a    --all   list all", HELP.replace("\n-", "\n  -")]
)
def test_what_is_no_help_of_a_llama_server_forbids_nothing(text: str) -> None:
    build = read_build(text, VERSION)
    assert build is UNKNOWN_BUILD
    assert list(wrong_arguments(build, ["--whatever", "-c"])) == []
    assert build.choose(("-new", "-old")) == "-new"


BUILD = "llama-server 0.7.0 (build 11669)"
TYPES = "(it knows f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0, q5_1)"


@pytest.mark.parametrize(
    ("args", "problems"),
    [
        ([], []),
        (["-c", "-1", "--no-kv-offload", "-fa", "1", "-ot", "blk=CPU"], []),
        (["--control-vector-layer-range", "1", "2", "-sm", "row"], []),
        (
            ["--flsh-attn", "on", "-c", "1"],
            [f'{BUILD} does not know --flsh-attn; did you mean "--flash-attn"?'],
        ),
        (["--quux"], [f"{BUILD} does not know --quux"]),
        (
            ["--draft-max", "8"],
            [f"{BUILD} has --draft-max no more: use --spec-draft-n-max or --spec-ngram-mod-n-max"],
        ),
        (
            ["-fa", "-c", "512"],
            ["-fa expects a value ([on|off|auto]), found the option -c after it"],
        ),
        (["-c"], ["-c expects a value (N), found nothing after it"]),
        (
            ["--control-vector-layer-range", "1"],
            [
                "--control-vector-layer-range expects a value (START END), found nothing after it",
            ],
        ),
        (
            ["--ctx-size=512"],
            ['expected --ctx-size and its value as two items, found "--ctx-size=512" as one'],
        ),
        (["-c 512"], ['expected -c and its value as two items, found "-c 512" as one']),
        (["on"], ['expected an option, found "on"']),
        (
            ["-ctk", "q9_0"],
            [f'{BUILD} does not know q9_0 for -ctk; did you mean "q8_0"? {TYPES}'],
        ),
        (
            ["-sm", "rows", "-x"],
            [
                f'{BUILD} does not know rows for -sm; did you mean "row"? '
                "(it knows none, layer, row, tensor)",
                f"{BUILD} does not know -x",
            ],
        ),
        (["-" + "x" * 200], [f"{BUILD} does not know -{'x' * 79}..."]),
    ],
)
def test_arguments_that_a_build_does_not_take_are_told(
    build: ServerBuild, args: list[str], problems: list[str]
) -> None:
    assert list(wrong_arguments(build, args)) == problems
