"""Patches of a vision transformer and the part of the face that each lies on.

The published system (arXiv 2606.00098) reads DINOv3 ViT-L/16 and the face parser of FaRL, which
`transformers` does not hold: here any parser that it loads and that names its classes as
CelebAMask-HQ does, such as ``jonathandinu/face-parsing``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from specsegdiff.errors import CheckpointError, ConfigError, DependencyError, ShapeError
from specsegdiff.narration.concepts import face_concepts
from specsegdiff.probes.pooling import IGNORE
from specsegdiff.shapes import is_finite

FACE_PARTS = ("mouth region", "eye region", "nose", "skin", "ear", "hair", "neck")
"""Concepts of `specsegdiff.narration.concepts.face_concepts` that are regions by default. What is
in none of them, such as the background, is dropped."""


@dataclass(frozen=True)
class Preparation:
    """How a model wants its pictures; read from the processor that is stored with it."""

    size: tuple[int, int]
    "Height and width in pixels; the whole picture is stretched to it."
    mean: tuple[float, ...]
    "Subtracted from each channel in [0, 1]."
    std: tuple[float, ...]
    "Then divides it."

    @classmethod
    def of(cls, processor: Any) -> Self:
        """Read size, mean and deviation of an image processor of transformers.

        Its other steps are not taken: a crop of its own would move the patches against the labels.
        Raises `ConfigError` where it states no height and width.
        """
        size = dict(processor.size or {})
        if not {"height", "width"} <= size.keys() or not (size["height"] and size["width"]):
            raise ConfigError(
                f"expected a processor with a height and a width, got size={size}; a shortest edge "
                "crops or distorts, so set processor.size = {'height': ..., 'width': ...}"
            )
        mean, std = tuple(processor.image_mean), tuple(processor.image_std)
        return cls((size["height"], size["width"]), mean, std)

    def __call__(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Stretch and normalise pictures in [0, 1]."""
        scaled = F.interpolate(images.float(), self.size, mode="bilinear", antialias=True)
        mean, std = (
            torch.tensor(v, device=images.device)[:, None, None] for v in (self.mean, self.std)
        )
        return (scaled - mean) / std


@dataclass(frozen=True, eq=False)
class FaceTokens:
    """What `FaceReader` sees in pictures."""

    tokens: Float[Tensor, "b n d"]
    "Patches, row by row; no CLS token and no registers."
    labels: Int[Tensor, "b n"]
    "Number of each patch's part in `FaceReader.regions`, or `IGNORE`."
    cls: Float[Tensor, "b d"]
    "CLS token, for the ablation."
    grid: tuple[int, int]
    "Rows and columns of patches."


class FaceReader:
    """A frozen vision transformer and a face parser that look at the same pictures.

    ``backbone`` returns ``last_hidden_state`` ``(b, 1 + registers + n, d)``, as DINOv3's ViT does;
    ``parser`` returns ``logits`` ``(b, classes, h, w)`` and names its classes in
    ``config.id2label``. Neither is changed. Load both with `from_pretrained`.

    >>> reader = FaceReader.from_pretrained(
    ...     "facebook/dinov3-vitl16-pretrain-lvd1689m", "jonathandinu/face-parsing"
    ... )  # doctest: +SKIP
    >>> face = reader(images)  # doctest: +SKIP
    """

    def __init__(
        self,
        backbone: Any,
        parser: Any,
        *,
        backbone_input: Preparation,
        parser_input: Preparation,
        parts: Sequence[str] = FACE_PARTS,
    ) -> None:
        self.backbone = backbone
        self.parser = parser
        self.backbone_input = backbone_input
        self.parser_input = parser_input
        self.regions = tuple(parts)
        "Names of the parts, in the order of their numbers."
        self.part_of_class = _part_of_class(parser.config.id2label, parts)
        patch = _pair(backbone.config.patch_size)
        self.grid = (backbone_input.size[0] // patch[0], backbone_input.size[1] // patch[1])
        if any(size % step for size, step in zip(backbone_input.size, patch, strict=True)):
            raise ConfigError(
                f"pictures of {backbone_input.size} pixels are no whole number of patches of "
                f"{patch}; choose multiples, so that no edge is dropped"
            )

    @classmethod
    def from_pretrained(
        cls,
        backbone: str | Path,
        parser: str | Path,
        *,
        parts: Sequence[str] = FACE_PARTS,
    ) -> Self:
        """Load both models and their processors from folders or hub ids, for evaluation.

        ``parts`` are concepts of `specsegdiff.narration.concepts.face_concepts`. Files are read as
        safetensors, and no code from a repository is run. Raises `DependencyError` where a
        processor needs a package that is missing, `CheckpointError` where nothing can be loaded,
        and `ConfigError` where the parser names no class of a part.
        """
        from transformers import AutoModel, AutoModelForSemanticSegmentation

        encoder, encoder_input = _load(AutoModel, backbone, "vision transformer")
        reader, reader_input = _load(
            AutoModelForSemanticSegmentation, parser, "semantic segmentation"
        )
        return cls(
            encoder, reader, backbone_input=encoder_input, parser_input=reader_input, parts=parts
        )

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> FaceTokens:
        """Patches and their parts in pictures ``(b, 3, h, w)`` in [0, 1], of any height and width,
        on the models' device.

        Raises `ShapeError` on other pictures, and `ConfigError` where the backbone does not return
        one CLS token, its registers and the patches of the grid.
        """
        _check_images(images)
        with torch.no_grad():
            states = self.backbone(pixel_values=self.backbone_input(images)).last_hidden_state
            logits = self.parser(pixel_values=self.parser_input(images)).logits
        n, first = self.grid[0] * self.grid[1], self.prefix
        if states.ndim != 3 or states.shape[1] != first + n:
            raise ConfigError(
                f"expected {first} tokens before {n} patches from "
                f"{type(self.backbone).__name__}, got {tuple(states.shape)}; pass a vision "
                "transformer with a CLS token, such as DINOv3's ViT"
            )
        # the parser's own map is a quarter of its input; votes are counted at full size
        full = F.interpolate(logits.float(), self.parser_input.size, mode="bilinear")
        parts = self.part_of_class.to(logits.device)[full.argmax(1)]
        return FaceTokens(
            tokens=states[:, first:],
            labels=patch_labels(parts, self.grid, count=len(self.regions)),
            cls=states[:, 0],
            grid=self.grid,
        )

    @property
    def prefix(self) -> int:
        """Tokens before the first patch: CLS, then registers."""
        return 1 + getattr(self.backbone.config, "num_register_tokens", 0)


def patch_labels(
    labels: Int[Tensor, "b h w"], grid: tuple[int, int], *, count: int
) -> Int[Tensor, "b n"]:
    """Part that most pixels of each patch have, row by row; `IGNORE` where most have none.

    Pixels of a map that is no multiple of the grid count in both patches that share them. Of equal
    shares, the lower number counts, and any part before none. Raises `ShapeError` where the map has
    fewer pixels than patches, or a label that is no part.

    >>> part = torch.tensor([[[0, 0, 1, -1], [0, -1, -1, -1]]])
    >>> patch_labels(part, (1, 2), count=2).tolist()
    [[0, -1]]
    """
    if labels.ndim != 3 or labels.shape[1] < grid[0] or labels.shape[2] < grid[1]:
        raise ShapeError(
            f"expected a map of labels (b, h, w) with at least {grid} pixels, got "
            f"{tuple(labels.shape)}; do not parse at less than the size of a patch"
        )
    if labels.is_floating_point() or int(labels.min()) < IGNORE or int(labels.max()) >= count:
        raise ShapeError(
            f"expected integer labels from {IGNORE} to {count - 1}, got {labels.dtype} from "
            f"{float(labels.min()):g} to {float(labels.max()):g}"
        )
    # pixels without a part come last, and so win no tie
    places = torch.where(labels == IGNORE, count, labels).long()
    votes = rearrange(F.one_hot(places, count + 1), "b h w k -> b k h w").double()
    winner = F.adaptive_avg_pool2d(votes, grid).argmax(1)
    return rearrange(winner.masked_fill(winner == count, IGNORE), "b h w -> b (h w)")


def _part_of_class(id2label: Mapping[int, str], parts: Sequence[str]) -> Tensor:
    """Number of the part of each class of a parser, `IGNORE` for classes in none.

    Classes are found by name: checkpoints number them differently, and some name them after files.
    """
    names = {int(number): name.removesuffix(".png") for number, name in id2label.items()}
    table, tree = torch.full((max(names, default=0) + 1,), IGNORE), face_concepts()
    for part, concept in enumerate(parts):
        labels = {
            label
            for below in tree.concepts
            if tree.holds(concept, below.name)
            for label in below.labels
        }
        found = [number for number, name in names.items() if name in labels]
        if not found:
            raise ConfigError(
                f"the parser has no class of the part {concept!r} ({sorted(labels)}); its classes "
                f"are {sorted(names.values())}: choose parts= among those that it has"
            )
        if (table[found] != IGNORE).any():
            raise ConfigError(
                f"the part {concept!r} shares classes with one before it in {tuple(parts)}; choose "
                "parts that do not hold each other"
            )
        table[found] = part
    return table


def _load(kind: Any, source: str | Path, what: str) -> tuple[Any, Preparation]:
    from transformers import AutoImageProcessor

    try:
        model = kind.from_pretrained(source, use_safetensors=True, trust_remote_code=False)
        processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
    except ImportError as error:
        raise DependencyError(
            f"the image processor of {source} needs more packages ({error}): "
            "pip install 'specsegdiff[vlm]'"
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{source} holds no {what} model and processor that transformers can load ({error}); "
            "check the name and the connection, or pass a folder"
        ) from error
    return model.eval(), Preparation.of(processor)


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor) or images.ndim != 4 or 0 in images.shape:
        came = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ShapeError(f"expected pictures (b, 3, h, w), got {came}; give one a batch axis")
    if images.shape[1] != 3:
        raise ShapeError(f"expected three colours, got {images.shape[1]} channels; convert to RGB")
    if not images.is_floating_point() or not is_finite(images):
        raise ShapeError(
            f"expected finite floating pictures in [0, 1], got {images.dtype}; divide bytes by 255"
        )
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1:
        raise ShapeError(
            f"expected pictures in [0, 1], got values from {low:g} to {high:g}; pass them before "
            "any normalisation"
        )
