"""What turns a picture into a network's input; it travels with the weights."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from zoo.errors import DataError, suggest

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image


@dataclass(frozen=True)
class Preprocess:
    """Resize the short side, crop the centre, then ``(pixel - mean) / std`` with pixels in 0..255.

    ``size`` is height and width. ``resize`` is the short side in pixels before the crop; None leaves the picture's own
    size. A picture that would be smaller than ``size`` is enlarged to cover it, its proportions kept. ``mean`` and
    ``std`` are in pixel units, one value per channel.
    """

    size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    resize: int | None = None
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        """Refuse values that cannot describe a picture."""
        if self.interpolation not in ("nearest", "bilinear", "bicubic"):
            raise DataError(f"preprocess.interpolation: {self.interpolation!r} is unknown (nearest, bilinear, bicubic)")
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise DataError("preprocess: mean and std need one value per channel, 1 or 3 channels")
        if not all(math.isfinite(m) for m in self.mean) or not all(math.isfinite(s) and s > 0 for s in self.std):
            raise DataError("preprocess: mean must be finite, std finite and positive")
        whole = [n for n in (*self.size, self.resize) if n is not None]
        if not all(isinstance(n, int) and not isinstance(n, bool) for n in whole):
            raise DataError("preprocess: size and resize must be whole numbers of pixels")
        if len(self.size) != 2 or min(self.size) < 1 or (self.resize is not None and self.resize < 1):
            raise DataError("preprocess: size must be two positive numbers, resize one or null")

    @property
    def channels(self) -> int:
        """Number of colour channels."""
        return len(self.mean)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Preprocess:
        """Build from plain JSON values; an unknown or missing field raises DataError."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name, value in fields.items():
            if name not in known:
                raise DataError(f"preprocess: field {name!r} is unknown{suggest(str(name), known)}")
            if name in ("size", "mean", "std") and not isinstance(value, list | tuple):
                raise DataError(f"preprocess.{name}: must be a list of numbers, got {value!r}")
        try:
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
            return cls(**values)
        except TypeError as error:
            raise DataError(f"preprocess: {error}") from None

    def pixels(self, image: Image.Image | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the picture as uint8 ``[H, W, C]`` of the network's size.

        Takes a PIL image or a uint8 array ``[H, W, C]`` or ``[H, W]``; grey pictures are widened to three channels,
        coloured ones are reduced to one, where the network asks for it. Anything else raises DataError.
        """
        import numpy as np
        from PIL import Image

        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8:
                raise DataError(f"preprocess: an array must be uint8 in 0..255, got {image.dtype}; convert it first")
            if image.ndim == 3 and image.shape[2] == 1:
                image = image[:, :, 0]
            if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (3, 4)):
                raise DataError(f"preprocess: an array must be [H, W] or [H, W, 1|3|4], got {list(image.shape)}")
            if image.size == 0:
                raise DataError(f"preprocess: an array of {list(image.shape)} holds no pixels")
            image = Image.fromarray(image)
        if not isinstance(image, Image.Image):
            raise DataError(f"preprocess: need a PIL image or a uint8 array, got {type(image).__name__}")
        if image.mode.startswith(("I", "F")):
            raise DataError(f"preprocess: a PIL image of mode {image.mode} has more than 8 bits; convert it to 8 bits")
        if min(image.size) < 1:
            raise DataError(f"preprocess: a picture of {image.width}x{image.height} holds no pixels")
        try:
            image = image.convert("L" if self.channels == 1 else "RGB")
        except (OSError, SyntaxError, ValueError) as error:  # PIL decodes a file only now
            raise DataError(f"preprocess: not a readable picture ({error}); replace it") from None
        height, width = self.size
        short = min(image.size)
        ratio = max((self.resize or short) / short, width / image.width, height / image.height)
        target = (max(width, round(image.width * ratio)), max(height, round(image.height * ratio)))
        if target != image.size:
            image = image.resize(target, getattr(Image.Resampling, self.interpolation.upper()))
        array = np.asarray(image, dtype=np.uint8)
        if array.ndim == 2:
            array = array[:, :, None]
        top, left = (array.shape[0] - height) // 2, (array.shape[1] - width) // 2
        return array[top : top + height, left : left + width]

    def batch(self, images: np.ndarray[Any, Any] | torch.Tensor) -> torch.Tensor:
        """Return float32 ``[N, C, H, W]`` (channels_last) of the centre of cached uint8 ``[N, S, S, C]``."""
        height, width = self.size
        if images.ndim != 4 or images.shape[3] != self.channels or images.shape[1] < height or images.shape[2] < width:
            raise DataError(
                f"preprocess: the network needs [N, >={height}, >={width}, {self.channels}] pixels, "
                f"the data set holds {list(images.shape)}; choose a data set of that size"
            )
        top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
        return self.normalize(images[:, top : top + height, left : left + width])

    def normalize(self, pixels: np.ndarray[Any, Any] | torch.Tensor) -> torch.Tensor:
        """Return ``(pixel - mean) / std`` as float32 ``[N, C, H, W]`` from uint8 ``[N, H, W, C]``; no crop."""
        import torch

        if isinstance(pixels, torch.Tensor):
            x = pixels.to(torch.float32, memory_format=torch.contiguous_format)
        else:
            x = torch.tensor(pixels, dtype=torch.float32)
        mean, std = torch.tensor([self.mean, self.std], dtype=torch.float32, device=x.device)
        return x.sub_(mean).div_(std).permute(0, 3, 1, 2)

    def __call__(self, image: Image.Image | np.ndarray[Any, Any]) -> torch.Tensor:
        """Return the float32 input ``[C, H, W]`` of one picture."""
        import numpy as np

        return self.normalize(np.array(self.pixels(image))[None])[0]
