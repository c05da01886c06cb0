"""The tasks that clients can ask of a model: its input and output tensors, and the results made from its outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from PIL import Image

from atelier._contract import Contract, Tensor
from atelier._models import MODELS
from atelier._wire import InferResult
from atelier.classification import Classification
from atelier.errors import InvalidInput, UnknownModel
from atelier.painting import Stroke

T = TypeVar("T")


@dataclass(frozen=True)
class Task(Generic[T]):
    """`takes`, the required inputs, and `gives`, the outputs, are names of tensors. `read` turns a batch's outputs into
    one result per member. A task that `streams` gives several results per request, and needs a server."""

    takes: tuple[str, ...]
    gives: tuple[str, ...]
    read: Callable[[InferResult, Contract], list[T]]
    streams: bool = False

    def contract(self, model: str) -> Contract:
        """The contract of a model that can do this. Raises UnknownModel, or InvalidInput if `model` is not a name."""
        check_name(model)
        able = {name: known for name, known in MODELS.items() if self._fits(known)}
        if model not in able:
            does = f"turns {' and '.join(self.takes)} into {' and '.join(self.gives)}"
            raise UnknownModel(f"no model {model!r} {does}; this version of the SDK knows {', '.join(sorted(able))}")
        return able[model]

    def _fits(self, contract: Contract) -> bool:
        return (_names(contract.inputs), _names(contract.outputs)) == (self.takes, self.gives)


def check_name(model: object) -> None:
    """Raises InvalidInput if `model` is not text that can be sent, so cannot be a model's name."""
    if not isinstance(model, str) or model.encode(errors="ignore").decode() != model:
        raise InvalidInput(f"model {model!r:.60}: must be the name of one")


def _names(tensors: tuple[Tensor, ...]) -> tuple[str, ...]:
    return tuple(tensor.name for tensor in tensors if not tensor.optional)


def _pictures(result: InferResult, _: Contract) -> list[Image.Image]:
    pictures = [Image.fromarray(pixels) for pixels in result.tensors["image"]]
    for picture in pictures:
        picture.info.update(model=result.model, version=result.version)
    return pictures


def _classifications(result: InferResult, contract: Contract) -> list[Classification]:
    return [
        Classification(
            probabilities=dict(zip(contract.labels, row, strict=True)),
            model=result.model,
            version=result.version,
        )
        for row in result.tensors["probabilities"].tolist()
    ]


def _strokes(result: InferResult, contract: Contract) -> list[Stroke]:
    images = _pictures(result, contract)
    numbers = (result.tensors[name].tolist() for name in ("iteration", "total", "losses", "objective"))
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
