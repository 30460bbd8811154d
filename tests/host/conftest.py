"""Real ComfyUI in this process, on the CPU."""

import logging

from comfy import cli_args

cli_args.args.cpu = True  # before anything imports comfy.model_management
logging.getLogger().setLevel(logging.ERROR)
