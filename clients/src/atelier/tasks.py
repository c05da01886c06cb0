"""What the clients can ask of a model: which tensors it takes for that, and what becomes of those it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from PIL import Image

from atelier._contract import Contract, Tensor
from atelier._models import MODELS
from atelier._wire import Answer
from atelier.classification import Classification
from atelier.errors import UnknownModel
from atelier.painting import Stroke

T = TypeVar("T")


@dataclass(frozen=True)
class Task(Generic[T]):
    """`takes`, what must be given, and `gives` are names of tensors. `read` makes of a batch's answer one result for
    each member. What `streams` answers more than once, and needs a server for that."""

    takes: tuple[str, ...]
    gives: tuple[str, ...]
    read: Callable[[Answer, Contract], list[T]]
    streams: bool = False

    def contract(self, model: str) -> Contract:
        """What the SDK knows of a model that can do this. Raises UnknownModel."""
        able = {name: known for name, known in MODELS.items() if self._fits(known)}
        if model not in able:
            does = f"turns {' and '.join(self.takes)} into {' and '.join(self.gives)}"
            raise UnknownModel(f"no model {model!r} {does}; this version of the SDK knows {', '.join(sorted(able))}")
        return able[model]

    def _fits(self, contract: Contract) -> bool:
        return (_names(contract.inputs), _names(contract.outputs)) == (self.takes, self.gives)


def _names(tensors: tuple[Tensor, ...]) -> tuple[str, ...]:
    return tuple(tensor.name for tensor in tensors if not tensor.optional)


def _pictures(answer: Answer, _: Contract) -> list[Image.Image]:
    pictures = [Image.fromarray(pixels) for pixels in answer.tensors["image"]]
    for picture in pictures:
        picture.info.update(model=answer.model, version=answer.version)
    return pictures


def _classifications(answer: Answer, contract: Contract) -> list[Classification]:
    return [
        Classification(
            probabilities=dict(zip(contract.labels, row, strict=True)),
            model=answer.model,
            version=answer.version,
        )
        for row in answer.tensors["probabilities"].tolist()
    ]


def _strokes(answer: Answer, contract: Contract) -> list[Stroke]:
    images = _pictures(answer, contract)
    numbers = (answer.tensors[name].tolist() for name in ("iteration", "total", "losses", "objective"))
    return [
        Stroke(image, iteration, total, content, style, variation, objective)
        for image, (iteration,), (total,), (content, style, variation), (objective,) in zip(
            images, *numbers, strict=True
        )
    ]


GENERATE: Final = Task(takes=("latent",), gives=("image",), read=_pictures)
CLASSIFY: Final = Task(takes=("image",), gives=("probabilities",), read=_classifications)
STYLIZE: Final = Task(takes=("content", "style_weights"), gives=("image",), read=_pictures)
UPSCALE: Final = Task(takes=("low_res",), gives=("image",), read=_pictures)
COLORIZE: Final = Task(takes=("gray", "stage"), gives=("image",), read=_pictures)
PAINT: Final = Task(
    takes=("content", "style"),
    gives=("image", "iteration", "total", "losses", "objective"),
    read=_strokes,
    streams=True,
)
