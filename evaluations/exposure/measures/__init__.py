"""Measures of exposure bias: one a file, and a line of the table."""

from .delta import Delta
from .errors import Errors
from .measure import Measure, Setup
from .norms import Lengths, Norms
from .variance import Variance

__all__ = ["MEASURES", "Delta", "Errors", "Lengths", "Measure", "Norms", "Setup", "Variance"]

MEASURES = [Norms(), Delta(), Variance(), Errors()]
