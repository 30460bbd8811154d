"""Put trained weights where the pack reads them: `python run.py train export --unet runs/unet/last.pt`, or --mmdit, --turbo8,
--turbo4, --second, --vae, --control, --image."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from ...demo.control import WEIGHTS as CONTROL
from ...demo.image_prompt import ADAPTER, VISION
from ...demo.load import SECOND_TEXT, SECOND_UNET, TURBO, WEIGHTS

LIMIT = 24 * 2**20


def save(part: str, weights: dict[str, torch.Tensor]) -> None:
    path = WEIGHTS / f"{part}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.half().contiguous() for name, weight in weights.items()}, path)
    if path.stat().st_size > LIMIT:
        raise SystemExit(f"{path} has {path.stat().st_size} bytes, more than {LIMIT}")


def of(weights: dict[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    """The weights of one part of what was trained together."""
    return {name.removeprefix(f"{part}."): weight for name, weight in weights.items() if name.startswith(f"{part}.")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--unet", type=Path)
    parser.add_argument("--mmdit", type=Path)
    parser.add_argument("--turbo8", type=Path)
    parser.add_argument("--turbo4", type=Path)
    parser.add_argument("--second", type=Path)
    parser.add_argument("--vae", type=Path)
    parser.add_argument("--control", type=Path)
    parser.add_argument("--image", type=Path)
    args = parser.parse_args()
    if args.unet:
        average = torch.load(args.unet, map_location="cpu")["average"]
        save("unet", of(average, "unet"))
        if own_text := of(average, "text"):  # none where it was not trained
            save("text", own_text)
    if args.second:
        average = torch.load(args.second, map_location="cpu")["average"]
        unet, (encoder, decoder) = of(average, "second"), SECOND_UNET
        late = {name for name in unet if name.startswith("output_blocks")}
        save(encoder, {name: weight for name, weight in unet.items() if name not in late})
        save(decoder, {name: weight for name, weight in unet.items() if name in late})
        save(SECOND_TEXT, of(average, "text"))
    if args.mmdit:
        save("mmdit", of(torch.load(args.mmdit, map_location="cpu")["average"], "mmdit"))
    for trained, lora in zip((args.turbo8, args.turbo4), TURBO.values(), strict=True):
        if trained:
            save(lora, torch.load(trained, map_location="cpu")["average"])
    if args.control:
        save(CONTROL, torch.load(args.control, map_location="cpu")["average"])
    if args.image:
        trained = torch.load(args.image, map_location="cpu")["student"]
        save(VISION, of(trained, "vision"))
        save(ADAPTER, of(trained, "adapter"))
    if args.vae:
        save("vae", torch.load(args.vae, map_location="cpu")["vae"])
