"""Decoding methods. Importing this imports nothing heavy, so that help and error messages are instant."""

from methods.drafter_rows import DRAFTERS, DrafterSpec
from methods.options import MOST, VARIANT, Option
from methods.table import ALL_DEVICES, BASELINE, METHODS, MethodSpec, get_method, weight_kinds

__all__ = [
    "ALL_DEVICES",
    "BASELINE",
    "DRAFTERS",
    "METHODS",
    "MOST",
    "VARIANT",
    "DrafterSpec",
    "MethodSpec",
    "Option",
    "get_method",
    "weight_kinds",
]
