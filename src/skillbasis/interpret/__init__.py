"""What the directions of a basis mean: the examples at their ends, their words, and the attributes they go with."""

from __future__ import annotations

from .attributes import AttributeTable, Correlation, attribute_table, correlate
from .describe import describe_basis, write_description
from .exemplars import Exemplar, RankBy, ranking_values, top_examples
from .keywords import Keyword, keywords, token_counts
from .labelling import Labelling, label_basis
from .markdown import to_markdown

__all__ = [
    "AttributeTable",
    "Correlation",
    "Exemplar",
    "Keyword",
    "Labelling",
    "RankBy",
    "attribute_table",
    "correlate",
    "describe_basis",
    "keywords",
    "label_basis",
    "ranking_values",
    "to_markdown",
    "token_counts",
    "top_examples",
    "write_description",
]
