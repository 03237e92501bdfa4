"""Packs `conf/`, `sweeps/` and `schedules/` into the wheel, as `larosa/settings/`; all else stands in pyproject.toml.

In a checkout, and in an editable installation, the folders are read where they are (:mod:larosa.records.packaged).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = ("conf", "sweeps", "schedules")


class BuildWithSettings(build_py):
    """`build_py`, and the YAML and JSON files that the modules need beside them."""

    def run(self) -> None:
        """Copy the packages, then the folders of settings; an editable installation needs no copy."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "larosa" / "settings"
        shutil.rmtree(target, ignore_errors=True)
        for name in FOLDERS:
            shutil.copytree(
                Path(__file__).resolve().parent / name,
                target / name,
                ignore=shutil.ignore_patterns(".*", "__pycache__"),
            )


setup(cmdclass={"build_py": BuildWithSettings})
