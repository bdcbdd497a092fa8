"""A daemon as a package installs it: a script and a tree of modules, which an upgrade replaces."""

import shutil
import sys
from pathlib import Path

import rolemesh

_SCRIPT = """\
#!{python}
import sys
sys.path.insert(0, {tree!r})
from {module} import main
sys.exit(main())
"""


class InstalledProgram:
    """A program in a folder of its own."""

    def __init__(self, folder: Path, name: str, module: str) -> None:
        self.path = folder / name
        self._tree = folder / "lib"
        self._package = self._tree / "rolemesh"
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(rolemesh.__file__).parent, self._package, ignore=ignore)
        self.path.write_text(
            _SCRIPT.format(python=sys.executable, tree=str(self._tree), module=module)
        )
        self.path.chmod(0o755)

    def upgrade(self, version: str) -> None:
        """Install another version, as a package manager does: by renaming."""
        self._replace("__init__.py", f'__version__ = "{version}"\n')

    def upgrade_to_a_broken_one(self) -> None:
        """Install one that cannot be imported."""
        self._replace("gateway/main.py", "def main(:\n")
        self.upgrade("broken")

    def _replace(self, name: str, text: str) -> None:
        new = self._package / f"{name}.dpkg-new"
        new.write_text(text)
        new.replace(self._package / name)
