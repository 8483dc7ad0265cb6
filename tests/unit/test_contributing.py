"""Pages, and the tests for other kernels, name functions, files and tests that exist."""

from __future__ import annotations

import re
from itertools import chain, pairwise
from pathlib import Path

import pytest

from tests.kernels.__main__ import QUICK
from tests.kernels.setups import SETUPS

TOP = Path(__file__).parents[2]
TEXT = (TOP / "CONTRIBUTING.md").read_text("utf-8")
PAGES = ["CONTRIBUTING.md", "README.md", "SECURITY.md", "pyproject.toml"]
PAGES += [str(page.relative_to(TOP)) for page in sorted(TOP.glob("docs/*.md"))]
STEP = re.compile(r"((?:`[\w.]+`(?: → |, )?)+) \(`((?:ig|ebpf)/[^`]+)`\)")


@pytest.mark.parametrize("page", PAGES)
def test_files_that_pages_name_exist(page: str) -> None:
    text = (TOP / page).read_text("utf-8")
    names = re.findall(r"\b((?:ig|ebpf|tests|docs|scripts)/[\w/]+\.(?:py|c|h|md))\b", text)
    assert [name for name in names if "NAME" not in name and not (TOP / name).exists()] == []


@pytest.mark.parametrize(("functions", "file"), STEP.findall(TEXT))
def test_functions_on_the_path_of_an_event_exist(functions: str, file: str) -> None:
    text = (TOP / file).read_text("utf-8")
    for function in re.findall(r"`([\w.]+)`", functions):
        for name in function.split("."):
            assert re.search(rf"\b{name}\b", text), f"{name} is not in {file}"


@pytest.mark.parametrize("name", sorted({*QUICK, *chain(*SETUPS.values())}))
def test_tests_for_other_kernels_exist(name: str) -> None:
    file, _, test = name.partition("::")
    text = (TOP / "tests" / "host" / file).read_text("utf-8")
    assert not test or f"def {test.partition('[')[0]}(" in text


def test_map_of_the_code_is_complete_and_in_the_order_of_imports() -> None:
    contract = (TOP / "pyproject.toml").read_text("utf-8").partition("\nlayers = [")[2]
    layers = re.findall(r'"(.+)"', contract.partition("\n]")[0])
    order = {name: place for place, layer in enumerate(layers) for name in layer.split(" | ")}
    table = TEXT.partition("## Map of the code")[2].partition("\n## ")[0]
    rows = [re.findall(r"`ig/(\w+)(?:\.py|/)`", row.split(" | ")[0]) for row in table.splitlines()]
    places = [[order.pop(name) for name in row] for row in rows if row]
    assert list(order) == ["__main__"]
    assert all(max(above) <= min(below) for above, below in pairwise(places))
