"""Which version lies on the disk."""

from pathlib import Path

import pytest

import rolemesh
from rolemesh.runtime.installed import SOURCE, installed_version, is_program_replaced


def test_what_runs_here_is_what_is_installed() -> None:
    assert installed_version() == rolemesh.__version__
    assert not is_program_replaced()
    assert Path(rolemesh.__file__) == SOURCE


@pytest.mark.parametrize(
    ("content", "version"),
    [
        ('"""Says it."""\n\n__version__: Final = "0.2.0"\n', "0.2.0"),
        ('__version__ = "1.0rc1"', "1.0rc1"),
        ("__version__ = VERSION\n", None),
        ("", None),
    ],
)
def test_the_version_is_read_from_the_file_that_says_it(
    tmp_path: Path, content: str, version: str | None
) -> None:
    source = tmp_path / "__init__.py"
    source.write_text(content)
    assert installed_version(source) == version


def test_files_that_are_gone_have_no_version(tmp_path: Path) -> None:
    assert installed_version(tmp_path / "__init__.py") is None
