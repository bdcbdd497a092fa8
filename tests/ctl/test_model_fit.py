import dataclasses

import pytest

from rolemesh.ctl.model_fit import estimate_text, fit_text, header_text, use_of
from rolemesh.llama.gguf import read_model
from tests.lab.models import TinyModel, make_model
from tests.llama.model_headers import header

NODE = {
    "gpus": [
        {"gpu": "gpu0", "memory_total_mib": 24576, "memory_used_mib": 19251},
        {"gpu": "gpu1", "memory_total_mib": 8192, "memory_used_mib": 100},
        {"gpu": "gpu2", "memory_total_mib": None, "memory_used_mib": None},
    ]
}


def test_what_fits_is_told_in_numbers() -> None:
    plan = {"need_mib": 4813, "instance": "gpu1", "outcome": "placed", "problem": "", "reason": ""}
    assert fit_text(plan, NODE) == (
        "needs 4.7 GiB; gpu0 has 5.2 GiB free, gpu1 7.9 GiB; it would run on gpu1"
    )


def test_what_is_loaded_is_told() -> None:
    plan = {"need_mib": 640, "instance": "gpu1", "outcome": "joins"}
    assert fit_text(plan, {}) == "needs 640 MiB; it is on gpu1, or on its way there"


def test_what_does_not_fit_is_told_in_numbers() -> None:
    plan = {"need_mib": 9318, "instance": None, "outcome": "refused", "reason": "too large"}
    assert fit_text(plan, NODE) == (
        "needs 9.1 GiB; gpu0 has 5.2 GiB free, gpu1 7.9 GiB; it would run nowhere now: too large"
    )


def test_what_is_not_known_is_not_made_up() -> None:
    plan = {"need_mib": None, "instance": None, "outcome": "refused", "problem": "no llama-server"}
    assert fit_text(plan, {}) == (
        "what it needs cannot be told; it would run nowhere now: no llama-server"
    )


def test_a_header_in_one_line() -> None:
    text = header_text(read_model(make_model(TinyModel(name="tiny"))))
    assert text.startswith("llama, ")
    assert " parameters, F16, 2 layers, trained for 4096 tokens, " in text


def test_what_a_header_lets_expect() -> None:
    header = read_model(make_model(TinyModel(name="tiny")))
    small, large = (estimate_text(header, 1024, slots) for slots in (1, 4))
    assert small.startswith("needs ")
    assert small.endswith(" without one, by its header")
    assert small != large


def test_a_header_cannot_command_a_terminal() -> None:
    header = read_model(make_model(TinyModel(name="tiny")))
    text = header_text(dataclasses.replace(header, architecture="\x1b[2Jx\n"))
    assert text.startswith("\ufffd[2Jx\ufffd, ")
    plan = {"need_mib": 1, "instance": None, "outcome": "refused", "reason": "\x1b[2J"}
    assert fit_text(plan, {}).isprintable()


@pytest.mark.parametrize(
    ("architecture", "pooling", "use"),
    [
        ("llama", 0, None),
        ("qwen3", 3, "embeddings"),
        ("qwen3", 4, "rerank"),
        ("bert", 0, "embeddings"),
    ],
)
def test_what_a_model_is_for(architecture: str, pooling: int, use: str | None) -> None:
    assert use_of(header(architecture, 2, 64, pooling__type=pooling)) == use
