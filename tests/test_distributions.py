# SPDX-License-Identifier: Apache-2.0
"""What is uploaded for a release: the sdist, the wheel, their metadata, and how CI makes them."""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
# The sdist has all that git tracks but this, which only the repository's host and git read.
NOT_IN_SDIST = re.compile(r"\.github/|\.gitignore$|\.pre-commit-config\.yaml$")
WRITTEN_BY_SETUPTOOLS = re.compile(r"PKG-INFO$|setup\.cfg$|fastkd\.egg-info/")
BUILD_PRODUCTS = (
    "fastkd/_cuda_emulated.cpython-311-x86_64-linux-gnu.so",
    "fastkd/__pycache__/nn.cpython-311.pyc",
    "tests/__pycache__/cases.cpython-311.pyc",
    "build/native/kd_loss.o",
    "dist/fastkd-0.0.0.tar.gz",
    "demo-output/demo.png",
    ".venv/bin/python",
)

pytestmark = pytest.mark.skipif(
    not (ROOT / "setup.py").exists(), reason="setup.py is not beside the tests"
)


class Distributions(NamedTuple):
    tracked: set[str]
    sdist: Path
    wheel: Path


def tracked_files() -> set[str]:
    """What git tracks, and new files that it would: nobody should commit to pass a test."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name for name in listed.split("\0") if name and (ROOT / name).exists()}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """An sdist and a wheel without kernels, from a copy of the tree with old build products."""
    pytest.importorskip("setuptools")
    if not (ROOT / ".git").exists():
        pytest.skip("the source tree is not a git checkout")
    folder = tmp_path_factory.mktemp("distributions")
    tree, dist = folder / "tree", folder / "dist"
    tracked = tracked_files()
    for name in tracked:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    for name in BUILD_PRODUCTS:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    commands = ["sdist", "--dist-dir", dist, "bdist_wheel", "--dist-dir", dist]
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", *commands],
        cwd=tree,
        env={**os.environ, "FASTKD_NATIVE": "0", "FASTKD_CUDA": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    return Distributions(tracked, sdist, wheel)


def metadata_of(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_string(archive.read(name).decode())


def relative_links(markdown: str) -> list[str]:
    """Targets of links and pictures that need a folder to start from."""
    prose = re.sub(r"```.*?```", "", markdown, flags=re.DOTALL)
    targets = re.findall(r"(?:\]\(|src=\"|href=\"|^\[[^\]]+\]: *)([^)\"\s]+)", prose, re.MULTILINE)
    return [target for target in targets if not target.startswith("https://")]


def project() -> dict[str, dict[str, str]]:
    table: dict[str, dict[str, str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return table["project"]  # type: ignore[return-value]


def test_sdist_has_what_git_tracks(distributions: Distributions) -> None:
    with tarfile.open(distributions.sdist) as archive:
        files = {file.name.partition("/")[2] for file in archive.getmembers() if file.isfile()}
    files = {name for name in files if not WRITTEN_BY_SETUPTOOLS.match(name)}
    assert files == {name for name in distributions.tracked if not NOT_IN_SDIST.match(name)}


def test_scripts_of_the_sdist_can_be_run(distributions: Distributions) -> None:
    with tarfile.open(distributions.sdist) as archive:
        scripts = {f.name.partition("/")[2] for f in archive.getmembers() if f.mode & 0o100}
    assert {".ci/run", ".ci/aarch64"} <= scripts


def test_wheel_has_the_package_and_nothing_else(distributions: Distributions) -> None:
    with zipfile.ZipFile(distributions.wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert files == {name for name in distributions.tracked if name.startswith("fastkd/")}


def test_wheel_has_the_licence_and_the_notices(distributions: Distributions) -> None:
    metadata = metadata_of(distributions.wheel)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE", "THIRD_PARTY_NOTICES.md"]
    with zipfile.ZipFile(distributions.wheel) as archive:
        for name in metadata.get_all("License-File", []):
            (path,) = (n for n in archive.namelist() if n.endswith(f".dist-info/licenses/{name}"))
            assert archive.read(path) == (ROOT / name).read_bytes()


def test_no_relative_link_is_left_in_the_metadata(distributions: Distributions) -> None:
    metadata = metadata_of(distributions.wheel)
    assert metadata["Description-Content-Type"] == "text/markdown"
    description = metadata.get_payload()
    assert f"{project()['urls']['Repository']}/blob/v{metadata['Version']}/" in description
    assert relative_links(description) == []


def test_smoke_test_refuses_a_wheel_without_kernels(
    distributions: Distributions, tmp_path: Path
) -> None:
    with zipfile.ZipFile(distributions.wheel) as archive:
        archive.extractall(tmp_path)

    # Without .pth files: the one of an editable install would find the tree's modules.
    others = [entry for entry in sys.path if entry and Path(entry) != ROOT]

    def smoke(path: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-S", "-P", ROOT / "build_tools" / "smoke.py", path],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *others])},
            capture_output=True,
            text=True,
            check=False,
        )

    reference, native = smoke("reference"), smoke("native")
    assert reference.returncode == 0, reference.stderr
    assert "smoke test: ok" in reference.stdout
    assert native.returncode == 1
    assert "'cpu': None" in native.stderr


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("[a](docs/a.md#part)", "[a](R/blob/v1/docs/a.md#part)"),
        ("[`a`](./a.md), [b](b.md)", "[`a`](R/blob/v1/a.md), [b](R/blob/v1/b.md)"),
        ("see [above](#speed)", "see [above](R/blob/v1/README.md#speed)"),
        ('![a\nb](p.png "title")', '![a\nb](R/raw/v1/p.png "title")'),
        ("[![a](p.png)](a.md)", "[![a](R/raw/v1/p.png)](R/blob/v1/a.md)"),
        ("[a][1]\n\n[1]: a.md\n", "[a][1]\n\n[1]: R/blob/v1/a.md\n"),
        ('<a href="a.md"><img alt="p" src="p.png"></a>',
         '<a href="R/blob/v1/a.md"><img alt="p" src="R/raw/v1/p.png"></a>'),
        ("[a](https://example.org/a.md)", "[a](https://example.org/a.md)"),
        ("`f[0](x)` and ``g[`0`](x)``", "`f[0](x)` and ``g[`0`](x)``"),
        ("```python\nf[0](x)\n```\n[a](a.md)", "```python\nf[0](x)\n```\n[a](R/blob/v1/a.md)"),
    ],
)  # fmt: skip
def test_links_are_made_absolute(markdown: str, expected: str) -> None:
    from build_tools.metadata import absolute_links

    repository = "https://github.com/fastkd/fastkd"
    made = absolute_links(markdown, repository, "v1")
    assert made == expected.replace("R/", f"{repository}/")


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ([], "Apache-2.0"),
        (["_cpu_base", "_cpu_avx2"], "Apache-2.0 AND BSD-3-Clause"),
        (["_cpu_base", "_cuda"], "Apache-2.0 AND BSD-3-Clause AND LicenseRef-NVIDIA-Proprietary"),
    ],
)
def test_licence_expression_names_what_is_compiled_in(modules: list[str], expected: str) -> None:
    from build_tools.metadata import license_expression

    assert license_expression(modules) == expected


def test_links_of_the_documents_lead_somewhere() -> None:
    documents = [
        path
        for pattern in ("*.md", "docs/*.md", "csrc/**/*.md", "benchmarks/**/*.md")
        for path in ROOT.glob(pattern)
    ]
    assert documents
    broken = [
        f"{path.relative_to(ROOT)}: {link}"
        for path in documents
        for link in relative_links(path.read_text(encoding="utf-8"))
        if not (path.parent / link.partition("#")[0]).exists()
    ]
    assert broken == []


def test_every_file_names_one_address_of_the_repository() -> None:
    repository = project()["urls"]["Repository"]
    assert [url for url in project()["urls"].values() if not url.startswith(repository)] == []
    assert f'repository-code: "{repository}"\n' in (ROOT / "CITATION.cff").read_text()
    template = ROOT / ".github" / "ISSUE_TEMPLATE" / "config.yml"
    if template.exists():
        assert f"url: {repository}/security/" in template.read_text()


def test_actions_are_pinned_by_hash_and_once() -> None:
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    if not workflows:
        pytest.skip("the sdist has no workflows")
    uses = [
        line.strip().removeprefix("- ")
        for path in workflows
        for line in path.read_text().splitlines()
        if re.match(r"\s*(- )?uses: (?!\./)", line)
    ]
    assert [
        line for line in uses if not re.fullmatch(r"uses: [\w/-]+@[0-9a-f]{40} # v[\d.]+", line)
    ] == []
    actions = {line.partition("@")[0] for line in uses}
    assert len({*uses}) == len(actions), f"two versions of an action: {sorted({*uses})}"
