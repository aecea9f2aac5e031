"""The project as a whole: what is installed, what is pinned, and that the commands of the README exist."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from align.versions import TESTED

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def folders_with_code() -> set[str]:
    places = {"align": "align", "eval": "align.eval", "recipes": "align.recipes"}
    found = set()
    for top, package in places.items():
        for file in (ROOT / top).rglob("*.py"):
            below = file.parent.relative_to(ROOT / top).parts
            found.add(".".join((package, *below)))
    return found


def test_every_package_is_installed() -> None:
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == folders_with_code()
    for package in folders_with_code():
        top, _, below = package.partition(".")
        path = (
            ROOT / below.replace(".", "/")
            if below.split(".")[0] in ("eval", "recipes")
            else ROOT / top / below.replace(".", "/")
        )
        assert (path / "__init__.py").is_file(), f"{package} has no __init__.py"


def pins(name: str = "constraints.txt") -> dict[str, str]:
    return dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / name).read_text(encoding="utf-8"), re.M))


def stated(*extras: str) -> dict[str, Requirement]:
    """What pyproject asks for, with some of its extras, by name."""
    texts = list(PROJECT["project"]["dependencies"])
    for extra in extras:
        texts += PROJECT["project"]["optional-dependencies"][extra]
    return {found.name: found for found in map(Requirement, texts)}


def test_tested_versions_are_the_pinned_ones() -> None:
    assert {name: pins().get(name) for name in TESTED} == dict(TESTED)


def test_every_direct_dependency_is_pinned() -> None:
    assert set(stated("dev")) <= set(pins())
    assert set(stated()) == set(TESTED)


def test_the_floors_are_those_that_were_tested() -> None:
    """ci/floor.txt is what docs/versions.md says was seen to pass; pyproject allows that and nothing below it."""
    floors, asked = pins("ci/floor.txt"), stated("deepspeed", "encoder", "eval", "qlora", "real", "dev")
    assert set(stated("deepspeed", "encoder", "eval", "qlora", "real")) <= set(floors)
    for name, version in floors.items():
        (bound,) = (found.version for found in asked[name].specifier if found.operator == ">=")
        assert Version(bound) == Version(version), f"pyproject asks for {asked[name]}, ci/floor.txt has {version}"
    refused = re.findall(r"align needs (\w+)>=([\d.]+)", (ROOT / "align/compat.py").read_text(encoding="utf-8"))
    assert {name for name, _ in refused} == {"transformers", "trl"}
    assert all(Version(floors[name]) == Version(bound) for name, bound in refused)


def test_back_and_forward_are_one_minor_version_away() -> None:
    tested = pins()
    for name, sign in (("back", -1), ("forward", 1)):
        other = pins(f"ci/{name}.txt")
        assert {"torch", "transformers"} <= set(other) <= {"torch", "transformers", "trl"}
        for package, version in other.items():
            here, there = Version(tested[package]), Version(version)
            assert (there.major, there.minor) == (here.major, here.minor + sign), f"{package} in ci/{name}.txt"
    assert "trl" in pins("ci/back.txt")


def test_the_readme_names_what_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    assert set(re.findall(r"^make ([\w-]+)", text, re.M)) <= targets
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / link).exists(), f"the README links to {link}"
    from align.recipe import packaged_recipes

    for name in re.findall(r"^align (?:train|check) (\S+)", text, re.M):
        assert name in packaged_recipes() or name == "my.yaml"


@pytest.mark.slow
def test_the_wheel_holds_recipes_and_suites(tmp_path: Path) -> None:
    source = tmp_path / "source"  # a build writes into its source
    for name in ("align", "eval", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    options = ["-q", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-w", str(tmp_path)]
    command = [sys.executable, "-m", "pip", "wheel", *options, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "Cannot import 'setuptools" in done.stderr or "No module named 'setuptools'" in done.stderr:
        pytest.skip("setuptools is not installed beside the tests")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        "align/cli/main.py",
        "align/recipe/train_keys.json",
        "align/eval/__init__.py",
        "align/eval/suites/tofu-forget01.yaml",
        "align/recipes/README.md",
        "align/recipes/__init__.py",
        "align/recipes/quickstart/__main__.py",
        "align/recipes/quickstart/dpo.yaml",
        "align/recipes/quickstart/flat_retain.yaml",
        "align/recipes/preference/dpo-zephyr-7b.yaml",
        "align/recipes/accelerate/zero3.yaml",
        "align/recipes/accelerate/cpu2-zero3.json",
        "align/recipes/accelerate/slurm.sh",
    }
    assert expected <= names
    assert not [name for name in names if name.startswith(("eval/", "recipes/", "tests/"))]


def test_the_ci_script_reports_the_first_failure(tmp_path: Path) -> None:
    """With a stand-in for make that fails where it is told to; both parts run either way."""
    make = tmp_path / "make"
    make.write_text('#!/bin/sh\necho "$1"\n[ "$1" = "$FAILS" ] && exit 3\nexit 0\n')
    make.chmod(0o755)
    for fails, code in (("lint", 3), ("test", 3), ("nothing", 0)):
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "FAILS": fails}
        done = subprocess.run([ROOT / ".ci" / "run"], capture_output=True, text=True, check=False, env=environment)
        assert (done.returncode, done.stdout) == (code, "lint\ntest\n")


def test_the_floor_of_deepspeed_is_the_one_that_is_refused_below() -> None:
    from align.versions import DEEPSPEED

    assert PROJECT["project"]["optional-dependencies"]["deepspeed"] == [f"deepspeed>={DEEPSPEED}"]
