"""The methods that take part in dense evaluations of a transformer, by their ids.

To add one, write its engine (`engine/method.py` says what it is asked), its node, a row here, and its task in
`DiTRun.apply_model`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..engine.merging.config import SDTMConfig
from ..engine.merging.stages import MergingRun
from ..engine.method import Method
from ..engine.partial.token_subset import TokenGrid
from .run import Sampling

HIGHLIGHT, MERGING = "highlight", "merging"


def start_merging(config: SDTMConfig, sampling: Sampling, grid: TokenGrid, depth: int) -> MergingRun:
    """The state of token merging over a run on a transformer with so many blocks."""
    record = sampling.record
    return MergingRun(config, record.sigmas, grid, record.shape[0], depth, sampling.sigma_range(config))


METHODS: dict[str, Callable[[Any, Sampling, TokenGrid, int], Method]] = {MERGING: start_merging}
