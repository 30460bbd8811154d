"""The nodes: schema and `execute`, nothing else."""

from comfy_api.latest import ComfyExtension, io

from ..host.demo import show_adapters
from .demo import HighlightDemoModel
from .highlight import HighlightDiffusion
from .preview import HighlightMaskPreview
from .profile import HighlightProfile
from .report import HighlightReport
from .sdtm import HighlightSDTM
from .words import HighlightWords


class HighlightExtension(ComfyExtension):
    async def on_load(self) -> None:
        show_adapters()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            HighlightDiffusion, HighlightSDTM, HighlightWords, HighlightMaskPreview, HighlightReport, HighlightDemoModel,
            HighlightProfile,
        ]  # fmt: skip
