"""Measures of exposure bias: one a file, and a line of the table."""

from .delta import Delta
from .errors import Errors
from .measure import Measure, Setup
from .norms import Norms
from .variance import Variance

__all__ = ["MEASURES", "Delta", "Errors", "Measure", "Norms", "Setup", "Variance"]

MEASURES = [Norms(), Delta(), Variance(), Errors()]
