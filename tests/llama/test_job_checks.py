"""The files and keys of a model that keep it from being run."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest

from rolemesh.config.settings import DraftModel, LlamaServer, Lora, ModelSettings
from rolemesh.llama.job_checks import JobChecks
from rolemesh.names import ModelId
from tests.lab.adapters import make_adapter


def faults(path: Path, *, in_unit: bool = False, **fields: Any) -> list[str]:
    """Return what is wrong with a model, without where it is defined."""
    model = ModelSettings(
        model_id=ModelId("m"), path=path, roles=(), origin="/etc/n.yaml:3", **fields
    )
    checks = JobChecks(in_unit=in_unit)
    checks.check_model(model)
    checks.check_arguments(LlamaServer(), model)
    assert {problem.where for problem in checks.found} <= {"/etc/n.yaml:3"}
    return [
        f"{problem.key.removeprefix('models.m.')}: {problem.message}" for problem in checks.found
    ]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF\3\0\0\0" + bytes(16))
    return path


def test_every_file_is_looked_at_and_each_key_is_named(model: Path) -> None:
    absent = model.with_name("absent")
    page = model.with_name("page.gguf")
    page.write_text("<!doctype html>")
    assert faults(
        model,
        lora=(Lora(path=absent), Lora(path=page)),
        mmproj=absent,
        draft_model=DraftModel(path=absent),
        chat_template_file=absent,
    ) == [
        f"lora: {absent} does not exist",
        f"lora: {page}: is not a GGUF model: it is an HTML page: a failed download",
        f"mmproj: {absent} does not exist",
        f"draft_model.path: {absent} does not exist",
        f"chat_template_file: {absent} does not exist",
    ]


def test_files_that_are_there_are_no_problem(model: Path, tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages }}")
    adapter = make_adapter(tmp_path / "a.gguf")
    assert (
        faults(
            model,
            lora=(Lora(path=adapter, scale=0.5),),
            draft_model=DraftModel(path=model),
            chat_template_file=template,
        )
        == []
    )


def test_a_template_must_be_readable_and_a_file(model: Path, tmp_path: Path) -> None:
    assert faults(model, chat_template_file=tmp_path) == [
        f"chat_template_file: {tmp_path} cannot be read: is a directory"
    ]
    if os.geteuid() != 0:
        template = tmp_path / "t"
        template.touch(mode=0)
        (fault,) = faults(model, chat_template_file=template)
        assert fault.startswith(f"chat_template_file: {template} may not be read by user ")


def test_what_a_units_sandbox_hides_is_told_with_the_drop_in_that_helps(model: Path) -> None:
    (fault,) = faults(model, in_unit=True, chat_template_file=Path("/home/nobody/t.jinja"))
    assert "ProtectHome=read-only" in fault


def test_a_file_of_another_kind_is_named(make_model: Callable[..., Path], tmp_path: Path) -> None:
    model = make_model("tiny-a")
    adapter = make_adapter(tmp_path / "a.gguf")
    projector = tmp_path / "p.gguf"
    writer = gguf.GGUFWriter(projector, "clip")
    writer.add_type("mmproj")
    for step in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        step()
    assert faults(model, lora=(Lora(path=model),), mmproj=projector) == [
        f"lora: expected a LoRA adapter, found a model in {model}"
    ]
    assert faults(adapter) == [f"path: expected a model, found a LoRA adapter in {adapter}"]


@pytest.mark.parametrize(
    ("name", "scale", "separator"),
    [("a,b", 1, ","), ('a"b', 1, '"'), ("a:b", 2, ":"), ("a:b", 1, "")],
)
def test_adapters_that_no_list_can_name_are_refused(
    model: Path, tmp_path: Path, name: str, scale: float, separator: str
) -> None:
    adapter = make_adapter(tmp_path / name)
    expected = (
        f"lora: {adapter} has {separator} in its path, which llama-server cannot take; rename it"
    )
    assert faults(model, lora=(Lora(path=adapter, scale=scale),)) == [expected] * bool(separator)


def test_slots_of_models_that_have_none_to_save_are_not_saved(model: Path) -> None:
    assert faults(model, save_slots=True, rerank=True) == [
        "save_slots: llama-server saves no slots of a model with rerank; remove one of the two"
    ]
    assert faults(model, save_slots=True) == []
