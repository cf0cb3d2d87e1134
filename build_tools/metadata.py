# SPDX-License-Identifier: Apache-2.0
"""What the metadata of a wheel or sdist says, beyond the lines of pyproject.toml."""

import os
import re
import runpy
import shlex
import tomllib
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urljoin

from build_tools import tools

ROOT = Path(__file__).resolve().parents[1]

# What the wheels of a CUDA family, by its major version, are called on a package index:
# docs/install.md has the reasons. All of them install the package fastkd.
DISTRIBUTIONS = {"12": "fastkd-cu12", "13": "fastkd"}

# Code is matched first, so that it stays as it is. Each other match is the text before a target,
# and the target.
MARKDOWN_LINK = re.compile(
    r"(?P<code>(`+)(?!`).*?(?<!`)\2(?!`))"
    r"|(?P<picture>!\[[^\]]*\]\(|<img [^>]*?src=\")(?P<source>[^)\"\s]+)"
    r"|(?P<link>\]\(|^\[[^\]]+\]: *|<a [^>]*?href=\")(?P<target>[^)\"\s]+)",
    re.DOTALL | re.MULTILINE,
)


def long_description() -> str:
    """README.md for a package index, where its relative links would lead nowhere."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = runpy.run_path(str(ROOT / "fastkd" / "_version.py"))["__version__"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return absolute_links(readme, project["urls"]["Repository"], f"v{version}")


def absolute_links(readme: str, repository: str, tag: str) -> str:
    """The Markdown text with its links and pictures pointing to that tag of the repository."""

    def absolute(found: re.Match[str]) -> str:
        if found["code"]:
            return found[0]
        if found["picture"]:
            source = urljoin(f"{repository}/raw/{tag}/README.md", found["source"])
            return f"{found['picture']}{source}"
        target = urljoin(f"{repository}/blob/{tag}/README.md", found["target"])
        return f"{found['link']}{target}"

    return MARKDOWN_LINK.sub(absolute, readme)


def distribution_name(modules: Sequence[str]) -> str:
    """What a distribution with these native modules is called: fastkd, if no family is asked for.

    FASTKD_CUDA_FAMILY asks for one, and is refused if the modules are not of it: the name is what
    people choose a wheel by.
    """
    family = os.environ.get("FASTKD_CUDA_FAMILY")
    if not family:
        return "fastkd"
    if family not in DISTRIBUTIONS:
        raise SystemExit(
            f"fastkd: FASTKD_CUDA_FAMILY must be one of {', '.join(DISTRIBUTIONS)}, got {family!r}"
        )
    if "_cuda" not in modules:
        raise SystemExit(
            f"fastkd: FASTKD_CUDA_FAMILY={family}, but the CUDA kernels are not compiled"
        )
    nvcc = tools.find_nvcc()
    version = tools.cuda_version(nvcc)
    if version.partition(".")[0] != family:
        raise SystemExit(
            f"fastkd: FASTKD_CUDA_FAMILY={family}, but {shlex.join(nvcc)} is of CUDA {version}"
        )
    return DISTRIBUTIONS[family]


def license_expression(modules: Sequence[str]) -> str:
    """The SPDX expression of a distribution with these native modules: THIRD_PARTY_NOTICES.md."""
    licenses = ["Apache-2.0"]
    if modules:
        licenses.append("BSD-3-Clause")  # pybind11's headers
    if "_cuda" in modules:
        licenses.append("LicenseRef-NVIDIA-Proprietary")  # libcudart_static.a, as NVIDIA names it
    return " AND ".join(licenses)
