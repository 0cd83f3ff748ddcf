"""Truth and prediction side by side, as animations: colours, depth and optical flow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flashlla._files import replace_file

from .render import Clip
from .worlds import LOW, WALL

PIXEL = 5  # side of a pixel in the film
GAP = 4  # between pictures
TITLE = 14  # height of the words above
FASTEST = 3.0  # pixels a frame that have a full colour
MILLISECONDS = 350  # a frame
COLUMNS = ("truth", "model", "depth", "model", "flow", "model")


def save_film(
    path: Path, truth: Clip, rgb: Tensor, geometry: tuple[Tensor, Tensor, Tensor], known: int
) -> None:
    """Write a GIF with a row a clip.

    Args:
        truth: some clips, on the CPU.
        rgb: what a model makes of their beginnings, ``[clips, frames, height, width, 3]``.
        geometry: depth, flow and rise that it says of these.
        known: frames that it was given; a bar above says when it goes on by itself.
    """
    depth, flow, _ = geometry
    pictures = [truth.rgb, rgb, shades(truth.depth), shades(depth), hues(truth.flow), hues(flow)]
    frames = [_frame([p[:, i] for p in pictures], i >= known) for i in range(truth.rgb.shape[1])]
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(
        path,
        lambda aside: frames[0].save(
            aside,
            format="gif",
            save_all=True,
            append_images=frames[1:],
            duration=[*[MILLISECONDS] * (len(frames) - 1), 3 * MILLISECONDS],
            loop=0,
            optimize=True,
        ),
    )


def shades(depth: Tensor) -> Tensor:
    """The nearer, the brighter: ``[..., 3]``."""
    near = ((WALL - depth) / (WALL - LOW[2])).clamp(0, 1)
    return near[..., None].expand(*near.shape, 3)


def hues(flow: Tensor) -> Tensor:
    """Right and left in red and cyan, down and up in green and magenta, grey where nothing moves.

    The last frame has no flow, and repeats the one before.
    """
    x, y = (flow / FASTEST).clamp(-1, 1).unbind(-1)
    colors = torch.stack([0.5 + x / 2, 0.5 + y / 2, 0.5 - (x + y) / 4], -1)
    return torch.cat([colors, colors[:, -1:]], 1)


def _frame(pictures: list[Tensor], generated: bool):
    """One picture of all rows and columns, with words above."""
    from PIL import Image, ImageDraw

    side = PIXEL * pictures[0].shape[1]
    rows = len(pictures[0])
    image = Image.new("RGB", ((side + GAP) * len(pictures) - GAP, TITLE + (side + GAP) * rows), "white")
    pen = ImageDraw.Draw(image)
    for column, (name, clips) in enumerate(zip(COLUMNS, pictures, strict=True)):
        made = generated and name == "model"
        pen.text((column * (side + GAP) + 2, 1), name, fill="#c02020" if made else "#202020")
        for row, clip in enumerate(clips):
            values = (clip.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
            tile = Image.fromarray(np.repeat(np.repeat(values, PIXEL, 0), PIXEL, 1))
            image.paste(tile, (column * (side + GAP), TITLE + row * (side + GAP)))
    return image.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
