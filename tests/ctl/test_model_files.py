from dataclasses import replace
from pathlib import Path

import pytest

from rolemesh.config.dropins import ConfigSource
from rolemesh.config.load import load_node
from rolemesh.ctl import model_files
from rolemesh.ctl.model_files import ModelEntry

SMALL = ModelEntry(model_id="0815", path=Path("/srv/a b.gguf"), roles=("coder", "c#"))
FULL = ModelEntry(
    model_id="qwen:7b",
    path=Path("/srv/qwen.gguf"),
    roles=("coder",),
    context_size=8192,
    parallel=4,
    pin="gpu0",
    beside=("gpu1", "gpu2"),
)


@pytest.mark.parametrize(
    "entry", [SMALL, FULL, replace(SMALL, embeddings=True), replace(SMALL, rerank=True)]
)
def test_what_is_written_is_read_again(entry: ModelEntry) -> None:
    assert model_files.parse(model_files.render(entry)) == entry


def test_what_is_written_is_what_the_agent_reads(tmp_path: Path) -> None:
    (tmp_path / FULL.file_name).write_text(model_files.render(FULL))
    settings = load_node(ConfigSource(program="node", config_dir=tmp_path), {}).settings
    (model,) = settings.models.values()
    assert (model.model_id, model.path, model.roles) == ("qwen:7b", FULL.path, ("coder",))
    assert (model.context_size, model.parallel) == (8192, 4)
    pinned = {name: (each.model, each.pinned) for name, each in settings.instances.items()}
    assert pinned == {
        "gpu0": ("qwen:7b", True),
        "gpu1": (None, False),
        "gpu2": (None, False),
    }


def test_a_file_says_no_more_than_was_asked_for() -> None:
    assert model_files.render(SMALL).splitlines()[1:] == [
        "models:",
        '  "0815":',
        '    path: "/srv/a b.gguf"',
        '    roles: ["coder", "c#"]',
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "models: [",
        "models: {}\n",
        "models: 5\n",
        "models: {a: 5}\n",
        "models: {a: {path: 5, roles: 6}}\n",
        "listen: {port: 1}\n",
        model_files.render(SMALL) + "listen: {port: 1}\n",
        model_files.render(SMALL).replace("coder", "critic, coder"),
        model_files.render(FULL).replace("parallel", "args"),
        model_files.render(FULL).replace("pinned: true", "pinned: false"),
        "# mine\n" + model_files.render(SMALL),
    ],
)
def test_a_file_that_somebody_wrote_or_edited_is_not_ours(text: str) -> None:
    parsed = model_files.parse(text)
    assert parsed is None or (parsed != SMALL and model_files.render(parsed) == text)
