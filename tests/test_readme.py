# SPDX-License-Identifier: Apache-2.0
"""What README and the other pages promise: figures, examples and links."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.report import render_summary
from benchmarks.results import results_from_json

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "csrc/**/*.md", "tests/**/*.md")
    for path in ROOT.glob(pattern)
)
EXAMPLE_PAGES = ("docs/cached_teacher.md", "docs/causal_lm.md", "docs/relational.md")
EXAMPLE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^()\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)

pytestmark = pytest.mark.skipif(
    not README.is_file(), reason="the source tree is not beside the tests"
)


def page_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def without_code(path: Path) -> str:
    return FENCED.sub("", path.read_text(encoding="utf-8"))


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = (re.sub(r"[^\w\- ]", "", heading) for heading in HEADING.findall(without_code(path)))
    return {heading.lower().replace(" ", "-") for heading in headings}


def table_rows(text: str) -> list[list[str]]:
    """The cells of each row of the tables, without emphasis and the word "slower"."""
    return [
        [re.sub(r"\*|slower", "", cell).strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ]


def test_readme_is_short() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    assert [line for line in lines if len(line) > 100] == []


def test_readme_quotes_the_recorded_benchmark() -> None:
    text = README.read_text(encoding="utf-8")
    (name,) = set(re.findall(r"benchmarks/results/([\w.-]+)\.md", text))
    recorded = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))
    known = table_rows(render_summary(results_from_json(recorded)))
    # A table of one loss has no column of its name, and the tables end in columns of their own.
    known = [row if row[2] in ("fp32", "bf16") else ["linear_kd_loss", *row] for row in known]
    speed = re.search(r"^## Speed\n(.*?)^## ", text, re.DOTALL | re.MULTILINE)
    assert speed is not None
    quoted = table_rows(speed[1])[2:]
    assert len(quoted) >= 8
    assert [row for row in quoted if row not in [other[:8] for other in known]] == []
    assert any(min(map(float, row[6:])) < 1 for row in quoted), "no row where fastkd is slower"


@pytest.mark.parametrize("page", ["README.md", *EXAMPLE_PAGES])
def test_examples_run(page: str) -> None:
    """All of a page in turn: a later example may go on from an earlier one."""
    examples = EXAMPLE.findall((ROOT / page).read_text(encoding="utf-8"))
    assert examples
    exec("\n".join(examples), {})


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_links_lead_somewhere(path: Path) -> None:
    broken = []
    for link in LINK.findall(without_code(path)):
        place, _, anchor = link.partition("#")
        target = (path.parent / place).resolve() if place else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []
