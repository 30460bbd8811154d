"""Highlight Report: what a run cost and saved."""

import json
from typing import Any

import torch
from comfy_api.latest import io

from ..engine.report.numbers import as_text, report
from ..engine.report.picture import picture
from ..engine.trace import Trace
from .types import ADVANCED, CATEGORY, EMPTY_TRACE, HighlightTrace, aliases


class HighlightReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HighlightReport",
            display_name="Highlight Report",
            category=CATEGORY,
            description="Seconds, how many times faster than dense that is, what was computed and skipped, memory, and every "
            "fall-back with its reason: as text, as JSON and as a picture.",
            **aliases("statistics", "speed", "benchmark", "trace", "json"),
            inputs=[
                HighlightTrace.Input("trace", tooltip="From Highlight Diffusion or SDTM Token Merging."),
                io.AnyType.Input("after", tooltip="Anything made of the sampler's result, so that the report comes after it."),
                io.Int.Input(
                    "run", default=0, min=0, max=7, extra_dict=ADVANCED,
                    tooltip="Which run of the trace: 0 the last, 1 the one before, such as the first pass of a hi-res fix.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="text", tooltip="The report in a few lines."),
                io.String.Output(display_name="json", tooltip="The report with every evaluation, as JSON for scripts."),
                io.Image.Output(display_name="picture", tooltip="The report as a picture, with the timeline of the run."),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, trace: Trace, after: Any, run: int = 0) -> io.NodeOutput:
        chosen = trace.before_last(run)
        if chosen is None:
            return io.NodeOutput(EMPTY_TRACE, "{}", torch.ones(1, 64, 64, 3), ui={"text": (EMPTY_TRACE,)})
        told = report(chosen)
        text, full = as_text(told), json.dumps({**chosen.as_dict(), "report": told})
        return io.NodeOutput(text, full, picture(chosen), ui={"text": (text,), "highlight_report": [told]})
