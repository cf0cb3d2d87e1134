# SPDX-License-Identifier: Apache-2.0
"""How the native modules are compiled: what the variables ask for, and what is built first."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fastkd import _backends, _info

ROOT = Path(__file__).parents[1]
if not (ROOT / "build_tools").is_dir():
    pytest.skip("the build tools are not beside the tests", allow_module_level=True)
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # they are no installed package

from test_packaging import on_linux, run_python  # noqa: E402

from build_tools import metadata, modules, native, ninja_build, tools  # noqa: E402

SETUP = ROOT / "setup.py"


@pytest.mark.parametrize("variable", ["FASTKD_NATIVE", "FASTKD_CUDA"])
def test_unknown_choice_is_an_error(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "yes")
    with pytest.raises(SystemExit, match=f"{variable} must be one of auto, 0, 1, got 'yes'"):
        native.wished_for()


@pytest.mark.parametrize("variable", ["FASTKD_WERROR", "FASTKD_EMULATOR"])
def test_unknown_switch_is_an_error(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "yes")
    with pytest.raises(SystemExit, match=f"{variable} must be 0 or 1, got 'yes'"):
        tools.switched_on(variable)


def test_missing_compiler_is_an_error_only_if_native_is_required(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("FASTKD_NATIVE", "1")
    with pytest.raises(SystemExit, match=r"no C\+\+ compiler \(CXX=no-such-compiler"):
        native.wished_for()
    monkeypatch.setenv("FASTKD_NATIVE", "auto")
    assert native.wished_for() == []
    assert "installing the PyTorch reference only" in capsys.readouterr().err
    monkeypatch.setenv("FASTKD_CUDA", "1")
    with pytest.raises(SystemExit, match="FASTKD_CUDA=1, but the CUDA kernels need"):
        native.wished_for()


def test_no_module_is_built_where_native_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTKD_NATIVE", "0")
    assert native.wished_for() == []


@pytest.mark.parametrize("jobs", ["0", "-1", "many"])
def test_unusable_job_count_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, jobs: str
) -> None:
    pytest.importorskip("ninja")
    monkeypatch.setenv("MAX_JOBS", jobs)
    with pytest.raises(SystemExit, match=f"MAX_JOBS must be a whole number above 0, got '{jobs}'"):
        ninja_build.run(tmp_path, "build.ninja", "")


@pytest.fixture
def fake_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An nvcc of CUDA 12.9 that knows three chips and compiles nothing."""
    script = tmp_path / "nvcc"
    script.write_text(
        '#!/bin/sh\ncase "$1" in\n--list-gpu-code) printf "sm_80\\nsm_87\\nsm_90\\n" ;;\n'
        '--version) echo "Cuda compilation tools, release 12.9, V12.9.86" ;;\n'
        '--help | --dryrun) ;;\n*) echo "nvcc: out of order" >&2; exit 3 ;;\nesac\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("NVCC", str(script))
    for variable in ("FASTKD_NATIVE", "FASTKD_CUDA", "FASTKD_CUDA_ARCHS", "FASTKD_CUDA_FAMILY"):
        monkeypatch.delenv(variable, raising=False)
    return str(script)


@on_linux
def test_missing_nvcc_is_an_error_only_if_cuda_is_required(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tools, "find_nvcc", list)
    monkeypatch.setenv("FASTKD_CUDA", "1")
    with pytest.raises(SystemExit, match=r'FASTKD_CUDA=1, but .*pip install "cuda-toolkit\['):
        native.wished_for()
    monkeypatch.setenv("FASTKD_CUDA", "auto")
    assert "_cuda" not in native.wished_for()
    assert "building for the CPU only" in capsys.readouterr().err


@on_linux
def test_nvcc_that_is_named_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVCC", "no-such-nvcc")
    with pytest.raises(SystemExit, match="NVCC=no-such-nvcc is not there"):
        native.wished_for()


@on_linux
def test_the_emulator_is_refused_where_it_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTKD_CUDA", "0")
    monkeypatch.setenv("FASTKD_EMULATOR", "1")
    monkeypatch.setattr(modules, "emulator_runs", lambda: True)
    assert "_cuda_emulated" in native.wished_for()
    monkeypatch.setattr(modules, "emulator_runs", lambda: False)
    with pytest.raises(SystemExit, match="the emulator runs on x86-64 Linux only"):
        native.wished_for()


@on_linux
def test_cuda_is_built_where_there_is_an_nvcc(
    monkeypatch: pytest.MonkeyPatch, fake_nvcc: str
) -> None:
    assert "_cuda" in native.wished_for()
    monkeypatch.setenv("FASTKD_CUDA", "0")
    assert "_cuda" not in native.wished_for()


def test_nvcc_must_name_its_release(tmp_path: Path, fake_nvcc: str) -> None:
    assert tools.cuda_version([fake_nvcc]) == "12.9"
    script = tmp_path / "other"
    script.write_text("#!/bin/sh\necho 9.9\n")
    script.chmod(0o755)
    with pytest.raises(SystemExit, match=r"other --version names no release:\n9\.9"):
        tools.cuda_version([str(script)])


def test_a_wheel_is_named_after_the_family_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, fake_nvcc: str
) -> None:
    built = ["_cpu_base", "_cuda"]
    assert metadata.distribution_name(built) == "fastkd"  # nvcc is of CUDA 12, but nobody asked
    monkeypatch.setenv("FASTKD_CUDA_FAMILY", "")
    assert metadata.distribution_name(built) == "fastkd"
    monkeypatch.setenv("FASTKD_CUDA_FAMILY", "12")
    assert metadata.distribution_name(built) == "fastkd-cu12"


@pytest.mark.parametrize(
    ("family", "built", "message"),
    [
        ("12.9", ["_cuda"], "FASTKD_CUDA_FAMILY must be one of 12, 13, got '12.9'"),
        ("12", ["_cpu_base"], "FASTKD_CUDA_FAMILY=12, but the CUDA kernels are not compiled"),
        ("13", ["_cuda"], "FASTKD_CUDA_FAMILY=13, but {} is of CUDA 12.9"),
    ],
)
def test_a_family_that_is_not_built_is_an_error(
    monkeypatch: pytest.MonkeyPatch, fake_nvcc: str, family: str, built: list[str], message: str
) -> None:
    monkeypatch.setenv("FASTKD_CUDA_FAMILY", family)
    with pytest.raises(SystemExit, match=re.escape(message.format(fake_nvcc))):
        metadata.distribution_name(built)


@on_linux
@pytest.mark.parametrize(("family", "name"), [("", "fastkd"), ("12", "fastkd-cu12")])
def test_metadata_has_the_name_of_the_family(
    tmp_path: Path, fake_nvcc: str, family: str, name: str
) -> None:
    pytest.importorskip("setuptools")
    arguments = ("-q", "egg_info", "--egg-base", str(tmp_path))
    done = run_python(str(SETUP), *arguments, FASTKD_CUDA_FAMILY=family)
    assert done.returncode == 0, done.stderr
    written = (tmp_path / f"{name.replace('-', '_')}.egg-info" / "PKG-INFO").read_text()
    assert f"\nName: {name}\n" in written
    assert f'\nRequires-Dist: {name}[demo]; extra == "causal-lm"\n' in written


def test_every_family_is_built_and_published_under_its_name() -> None:
    workflows = ROOT / ".github" / "workflows"
    if not workflows.is_dir():
        pytest.skip("the sdist has no workflows")
    built = re.findall(
        r'name: ([\w-]+)\.linux-\w+,.* cuda: "(\d+)"', (workflows / "wheels.yml").read_text()
    )
    assert {family: name for name, family in built} == metadata.DISTRIBUTIONS
    published = re.findall(r"project: ([\w-]+),", (workflows / "publish.yml").read_text())
    assert sorted(published) == sorted(metadata.DISTRIBUTIONS.values())
    assert sorted(_info.DISTRIBUTIONS) == sorted(published)


def test_default_chips_are_those_that_nvcc_knows(fake_nvcc: str) -> None:
    assert tools.cuda_archs([fake_nvcc]) == ["80", "90+PTX"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("9.0", "FASTKD_CUDA_ARCHS must look like 80;90+PTX, got '9.0'"),
        ("80,90", "FASTKD_CUDA_ARCHS must look like 80;90+PTX, got '80,90'"),
        ("80;", "FASTKD_CUDA_ARCHS must look like 80;90+PTX, got '80;'"),
        ("80;70+PTX", "FASTKD_CUDA_ARCHS has 70+PTX, {} knows 80, 87, 90"),
    ],
)
def test_chips_that_nvcc_does_not_know_are_an_error(
    monkeypatch: pytest.MonkeyPatch, fake_nvcc: str, wanted: str, message: str
) -> None:
    monkeypatch.setenv("FASTKD_CUDA_ARCHS", wanted)
    with pytest.raises(SystemExit, match=re.escape(message.format(fake_nvcc))):
        tools.cuda_archs([fake_nvcc])


@pytest.mark.parametrize(
    ("chips", "asked"),
    [
        ("80;90+PTX", ("80,code=[sm_80]", "90,code=[sm_90,compute_90]")),
        ("75;100f;100", ("75,code=[sm_75]", "100f,code=[sm_100f]", "100,code=[sm_100]")),
        ("89+PTX;86;120;103", ("86,code=[sm_89,sm_86,compute_86]", "103,code=[sm_120,sm_103]")),
    ],
)
def test_code_and_ptx_are_asked_for(chips: str, asked: tuple[str, ...]) -> None:
    words = [f"-gencode=arch=compute_{codes}" for codes in asked]
    assert modules.gencodes(chips.split(";")) == words


def test_sources_tell_chips_apart_only_where_new_ptx_begins() -> None:
    sources = Path(modules.ROOT, "csrc").rglob("*.[ch]*")
    code = "\n".join(path.read_text() for path in sources)
    steps = re.findall(r"__CUDA_ARCH__ (?:<|>=) (\d+)", code)
    assert len(steps) == code.count("__CUDA_ARCH__") - code.count("defined(__CUDA_ARCH__)") > 0
    assert {int(step) for step in steps} <= {10 * chip for chip in modules.NEW_PTX}


@on_linux
def test_nvcc_that_fails_fails_the_build(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    fake_nvcc: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("ninja")
    monkeypatch.setattr(native, "FOLDER", tmp_path / "build")
    one_file = {("csrc/cuda/*.cpp", "csrc/cuda/**/*.cu"): ("csrc/cuda/launch.cu",)}
    monkeypatch.setattr(modules, "sources", lambda *patterns: one_file.get(patterns, ()))
    monkeypatch.setattr(modules, "BINDINGS", "csrc/backends/cpu.cpp")  # compiles in no time
    with pytest.raises(native.BuildError, match="FASTKD_CUDA=0 leaves the CUDA kernels out"):
        native.compile_modules({"_cuda": tmp_path / "_cuda.so"})
    said = capfd.readouterr().out
    assert "nvcc: out of order" in said
    assert "fastkd: 3 files to compile" in said


@pytest.fixture
def x86(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """An x86-64 machine with a compiler that sees the CPU's instruction sets, by their options."""
    monkeypatch.setattr(modules.platform, "machine", lambda: "x86_64")

    def of(*isas: str) -> None:
        options = {flag.removeprefix("-m") for isa in isas for flag in modules.ISA_FLAGS[isa]}
        seen = {f"__{option.upper()}__" for option in options}
        monkeypatch.setattr(tools, "macros", lambda compiler, flags: seen)

    return of


@pytest.mark.parametrize(
    ("wanted", "has", "built"),
    [
        ("", (), ("base", "avx2", "avx512")),
        ("all", (), ("base", "avx2", "avx512")),
        ("native", ("avx2", "avx512"), ("avx512",)),
        ("native", ("avx2",), ("avx2",)),
        ("native", (), ("base",)),
        ("runnable", ("avx2", "avx512"), ("base", "avx2", "avx512")),
        ("runnable", ("avx2",), ("base", "avx2")),
        ("runnable", (), ("base",)),
        ("avx2;base", (), ("avx2", "base")),
        ("avx2;avx2", (), ("avx2",)),
    ],
)
def test_instruction_sets_are_as_wished(
    monkeypatch: pytest.MonkeyPatch,
    x86: Callable[..., None],
    wanted: str,
    has: tuple[str, ...],
    built: tuple[str, ...],
) -> None:
    monkeypatch.setenv("FASTKD_CPU_ISAS", wanted)
    x86(*has)
    assert modules.wished_isas(["g++"]) == built


@pytest.mark.parametrize("wanted", ["avx1", "avx2,base", "avx2;", "native;base"])
def test_unknown_instruction_set_is_an_error(
    monkeypatch: pytest.MonkeyPatch, x86: Callable[..., None], wanted: str
) -> None:
    monkeypatch.setenv("FASTKD_CPU_ISAS", wanted)
    message = (
        f"FASTKD_CPU_ISAS must be all, native, runnable or some of base;avx2;avx512, got '{wanted}'"
    )
    with pytest.raises(SystemExit, match=message):
        modules.wished_isas(["g++"])


@pytest.mark.parametrize("wanted", ["base;avx512", "all"])
def test_only_a_set_that_is_named_must_be_known_to_the_compiler(
    monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    monkeypatch.setenv("FASTKD_CPU_ISAS", wanted)
    monkeypatch.setattr(tools, "complaint", lambda compiler, flags: "no" if flags else None)
    names = ["_cpu_base", "_cpu_avx512"]
    if wanted == "all":
        assert [*native.usable(names)] == ["_cpu_base"]
        return
    with pytest.raises(native.BuildError, match=r"FASTKD_CPU_ISAS names avx512, .* does not know"):
        list(native.usable(names))


def test_the_compiler_and_torch_see_one_cpu() -> None:
    compiler = tools.find_compiler()
    if not compiler:
        pytest.skip("there is no C++ compiler")
    assert modules.best_isa(compiler) == _backends.cpu_capabilities()[0]


def test_bindings_are_compiled_once_and_long_sources_first(tmp_path: Path) -> None:
    pytest.importorskip("pybind11")
    compiler = ["g++"]
    outputs = {
        modules.module(f"_cpu_{isa}", compiler): tmp_path / f"{isa}.so" for isa in ("base", "avx2")
    }
    text = ninja_build.modules_file(compiler, outputs, tmp_path)
    compiled = re.findall(r"^build (\S+): compile", text, re.MULTILINE)
    assert len(compiled) == len(set(compiled))
    assert [name for name in compiled if "module.cpp" in name] == [
        "python/csrc/bindings/module.cpp.o"
    ]
    places = [modules.place_in_build(name.removesuffix(".o")) for name in compiled]
    assert places == sorted(places)
    assert compiled[-1] != "python/csrc/bindings/module.cpp.o"


def test_every_long_source_is_there() -> None:
    names = [path.name for path in (ROOT / "csrc").rglob("*.c*")]
    missing = [start for start in modules.LONGEST if not any(n.startswith(start) for n in names)]
    assert missing == []


@on_linux
def test_emulator_never_gets_into_a_wheel(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    arguments = ("build_ext", "--build-lib", str(tmp_path), "--build-temp", str(tmp_path))
    done = run_python(str(SETUP), *arguments, FASTKD_EMULATOR="1")
    assert done.returncode == 1
    assert "FASTKD_EMULATOR=1 is for editable installs, not for wheels" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_older_module_stays_beside_new_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ninja_build, "run", lambda folder, file, text: True)
    monkeypatch.setattr(native, "FOLDER", tmp_path / "build")
    for name in ("_cpu_base.py311.so", "_cuda_emulated.py311.so", "_cpu_base.py312.so", "_core.py"):
        (tmp_path / name).touch()
    native.compile_modules({"_cpu_base": tmp_path / "_cpu_base.py311.so"})
    assert sorted(path.name for path in tmp_path.glob("_*")) == [
        "_core.py",
        "_cpu_base.py311.so",
        "_cpu_base.py312.so",
    ]
