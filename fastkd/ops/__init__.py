# SPDX-License-Identifier: Apache-2.0
"""One file per loss: its autograd function, its registered op, and the call of its kernel."""
