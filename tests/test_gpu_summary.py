# SPDX-License-Identifier: Apache-2.0
"""What gpu-check says of its steps, and of what compute-sanitizer and ncu say."""

from pathlib import Path

import pytest
from gpu_outcomes import MACHINE, ended

from benchmarks import gpu_facts, gpu_run, gpu_summary, gpu_tools

MEMCHECK = """========= COMPUTE-SANITIZER
called kd_loss 9x7 bfloat16/bfloat16 63 element
========= Invalid __global__ read of size 4 bytes
=========     at rows_in_registers+0x1a0
========= ERROR SUMMARY: 2 errors
"""
NCU = """==PROF== Connected to process 17
called kd_loss 65536x1000 bfloat16/bfloat16 1000 element
==PROF== Disconnected
"ID","Process ID","Kernel Name","dram__bytes_read.sum","dram__bytes_write.sum",\
"gpu__time_duration.sum","launch__registers_per_thread","sm__inst_executed_pipe_xu.avg.\
pct_of_peak_sustained_active"
"","","","byte","Kbyte","ns","register/thread","%"
"0","17","void fastkd::cuda::rows_in_registers<A, B, 1>(C)","4,000","2","1,000","63","41.6"
"1","17","void fastkd::cuda::<unnamed>::angle_ends<A>(C)","8,000","6","2,000","64","n/a"
"2","17","void fastkd::cuda::angle_vertices<A>(C)","4,000","0","2,000","64","n/a"
"""


def test_sanitizer_output_is_one_line() -> None:
    assert gpu_tools.sanitizer_words(MEMCHECK) == (
        "error summary: 2 errors; first: Invalid __global__ read of size 4 bytes"
    )
    assert gpu_tools.sanitizer_words("========= RACECHECK SUMMARY: 0 hazards displayed") == (
        "racecheck summary: 0 hazards displayed"
    )
    assert "no verdict: Device not supported" in gpu_tools.sanitizer_words("Device not supported")


def test_ncu_output_is_bytes_per_element() -> None:
    first, second, third = gpu_tools.ncu_words(NCU)
    assert first == (
        "kd_loss 65536x1000 bfloat16/bfloat16: 6.00 DRAM bytes for each element, 6 GB/s, 1 us, "
        "42% XU, 63 registers (rows_in_registers)"
    )
    assert "14.00 DRAM bytes for each element" in second
    assert "nan% XU" in second
    assert third.endswith("(angle_vertices)")
    assert gpu_tools.ncu_words("==ERROR== ERR_NVGPUCTRPERM") == [
        "no kernel was profiled: ==ERROR== ERR_NVGPUCTRPERM"
    ]
    assert gpu_tools.has_profile(NCU)
    assert not gpu_tools.has_profile("==ERROR== ERR_NVGPUCTRPERM")


def test_a_section_has_what_failed(tmp_path: Path) -> None:
    about = gpu_run.Run(MACHINE, tmp_path)
    wrong = ended("wrappers", 1, "pack_pair FAILED\n1 of device.h's wrappers fail")
    text = gpu_summary.section(about, "wrappers", [wrong])
    assert "wrappers: FAILED (1) (12 s): 1 of device.h's wrappers fail" in text
    assert "  wrappers: pack_pair FAILED" in text
    found = gpu_summary.checks(about, [ended("ncu 1", 0, NCU)])
    assert found["ncu 1, kernel 1"].startswith("kd_loss 65536x1000")
    tools = [ended("sanitizers memcheck", 9, MEMCHECK)]
    assert "2 errors; first: Invalid" in gpu_summary.section(about, "sanitizers", tools)
    assert gpu_summary.heading(MACHINE).startswith("Chip 1000, sm_90")


@pytest.mark.parametrize(
    ("name", "file"),
    [("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3"), ("A (b)", "a-b"), ("", "gpu")],
)
def test_results_are_named_by_the_chip(name: str, file: str) -> None:
    assert gpu_facts.slug(name) == file
