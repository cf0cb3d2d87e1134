# SPDX-License-Identifier: Apache-2.0
"""How setup.py compiles the native modules and dev.py makes environments; never in a wheel.

setup.py                what setuptools needs
  build_tools/native       the modules that are wished for, compiled
  build_tools/modules      a module: its sources and flags
  build_tools/tools        what the environment asks for and the machine has: g++, nvcc
  build_tools/ninja_build  files for ninja, and the run of it
dev.py                  one command in an environment with fastkd built for it
  build_tools/environment  that environment, and what is installed where
  build_tools/in_place     fastkd compiled and installed in the tree
  build_tools/wheels       wheels, and the machine code in them
  build_tools/processes    the commands that it runs
  build_tools/sanitize     the kernels under sanitizers
  build_tools/mutants      known faults (build_tools/faults), and which tests find them
"""
