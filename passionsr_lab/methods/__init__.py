"""One file per method, and the table of them; methods do not know each other."""

from .table import ABLATION, DEFAULT, METHODS, UNTRAINED, calibrate, find, register

__all__ = ["ABLATION", "DEFAULT", "METHODS", "UNTRAINED", "calibrate", "find", "register"]
