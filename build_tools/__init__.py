# SPDX-License-Identifier: Apache-2.0
"""How setup.py compiles the native modules; in the sdist, never in a wheel.

setup.py                which modules this machine builds
  build_tools/modules   a module: its sources and flags
  build_tools/tools     what the environment asks for and the machine has: g++, nvcc
  build_tools/ninja_buildbuild.ninja, and the run of it
"""
