# SPDX-License-Identifier: Apache-2.0
"""One file per loss: checks, choice of path, the public docstring, and the module."""
