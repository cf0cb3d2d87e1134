# SPDX-License-Identifier: Apache-2.0
"""Checks of options: what was expected, what was received, when the options are made."""

import math
import numbers
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch

# torch.compile passes symbols where a number may change from call to call.
_INTEGER = (int, torch.SymInt)
_REAL = (numbers.Real, torch.SymFloat, torch.SymInt)


def check_real(
    function: str, name: str, value: Any, rule: str, is_valid: Callable[[Any], bool]
) -> None:
    """Check a number."""
    if isinstance(value, bool | Fraction) or not isinstance(value, _REAL):
        raise TypeError(f"{function}: {name} must be a real number, got {_describe(value)}")
    if not is_valid(value) or _exceeds_float64(value):
        raise ValueError(f"{function}: {name} must be {rule}, got {value}")


def check_positive(function: str, name: str, value: Any) -> None:
    """Check a number that must be above 0 and finite."""
    check_real(function, name, value, "> 0 and finite", lambda x: 0 < x < math.inf)


def check_weight(function: str, name: str, value: Any) -> None:
    """Check a number that must not be negative."""
    check_real(function, name, value, ">= 0 and finite", lambda x: 0 <= x < math.inf)


def check_type(function: str, name: str, value: Any, wanted: type, word: str = "") -> None:
    """Check an integer or a truth value; `word`: what may stand in its place."""
    types = _INTEGER if wanted is int else wanted
    if not isinstance(value, types) or (wanted is int and isinstance(value, bool)):
        kinds = f"{wanted.__name__} or {word!r}" if word else wanted.__name__
        raise TypeError(f"{function}: {name} must be {kinds}, got {_describe(value)}")


def check_ignore_index(function: str, value: Any) -> None:
    """Check the target value of rows that do not count."""
    check_type(function, "ignore_index", value, int)
    check_real(function, "ignore_index", value, "an int64", lambda x: -(1 << 63) <= x < 1 << 63)


def check_choice(function: str, name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Check one of some words."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{function}: {name} must be one of {', '.join(choices)}, got {value!r}")


def _exceeds_float64(value: Any) -> bool:
    return isinstance(value, int) and abs(value) > sys.float_info.max


def _describe(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"
