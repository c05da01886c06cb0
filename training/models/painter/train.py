"""Paint a picture slowly, offline. Run: python -m training.run painter --content PHOTO --style PAINTING --dry-run

Gatys et al. 2015 with torch's autograd, on a GPU if there is one: the canvas is optimized coarse to fine, as by the
served painter, with the same knobs. What is exported is the objective that was minimised, with its gradient, as a graph
with which serving/backends/painter paints without torch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from serving.backends.painter import painting
from serving.backends.painter.knobs import KNOBS, OPTIMIZERS, STARTS, BadRequest, Knobs, read
from training import plots
from training.data import corpus, photos
from training.devices import pick_device
from training.errors import BadInput
from training.models.features import net as features
from training.models.painter import evaluate as measures
from training.models.painter.autograd import Closure, make_optimizer, targets_of
from training.models.painter.net import Objective
from training.models.painter.spec import GRAPH
from training.options import one_of, positive
from training.rundir import RunDir, load_checkpoint


def _default(knob: str) -> Any:
    """The served painter's default for a knob."""
    value = KNOBS[knob].default
    return value if len(value) > 1 else value[0]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Defaults are the served painter's. One step is one iteration of the optimizer."""

    content: str = ""
    """photograph to paint: a file, or a drawn corpus, whose first picture is taken"""
    style: str = ""
    """painting whose style is taken: a file, or a drawn corpus, whose first picture is taken"""
    size: int = 512
    """longer side of the photograph in pixels; 0 keeps it as it is"""
    features: str = features.OWN
    """backbone of the content and style losses: vgg16-half, vgg16, vgg19, random, or a file in torchvision's form"""
    iterations: int = _default("iterations")
    """iterations of the optimizer, over all scales"""
    content_weight: float = _default("content_weight")
    """weight of the content loss"""
    style_weight: float = _default("style_weight")
    """weight of the style loss"""
    tv_weight: float = _default("tv_weight")
    """weight of the total variation loss"""
    content_layers: tuple[float, float, float, float] = _default("content_layers")
    """weights of conv2_2, conv3_2, conv4_2, conv5_2 in the content loss"""
    style_layers: tuple[float, float, float, float, float] = _default("style_layers")
    """weights of conv1_1, conv2_1, conv3_1, conv4_1, conv5_1 in the style loss"""
    start: str = STARTS[_default("start")]
    """what the canvas shows at first: content or noise"""
    seed: int = _default("seed")
    """random seed of the noise that --start noise begins with"""
    scales: int = _default("scales")
    """number of sizes from coarse to fine, each twice the one before; 0 is as many as the size asks for"""
    optimizer: str = OPTIMIZERS[_default("optimizer")]
    """optimizer of the canvas: l-bfgs or adam"""
    every: int = _default("every")
    """iterations between two pictures in samples/"""
    film: bool = False
    """write film.webp, too: the painting coming into being"""
    checkpoint_minutes: float = 5.0
    """minutes between two checkpoints"""

    def __post_init__(self) -> None:
        one_of(self, start=STARTS, optimizer=OPTIMIZERS)
        positive(self, "checkpoint_minutes")
        if self.size != 0 and self.size < painting.SMALLEST_SIDE:
            raise BadInput(f"--size: {self.size} is too small; give {painting.SMALLEST_SIDE} or more, or 0")
        try:
            # Check the values as given first: int32 would wrap.
            read({name: np.array(value, object) for name, value in self._chosen().items()})
            read(self.on_the_wire())
        except BadRequest as error:
            raise BadInput(f"--{str(error).replace('_', '-')}") from error

    def _chosen(self) -> dict[str, Any]:
        chosen = {name: getattr(self, name) for name in KNOBS}
        return chosen | {"start": STARTS.index(self.start), "optimizer": OPTIMIZERS.index(self.optimizer)}

    def on_the_wire(self) -> dict[str, np.ndarray]:
        """The options that are knobs, as the tensors of a request."""
        types = {"INT32": np.int32, "FP32": np.float32}
        return {name: np.array(value, types[KNOBS[name].dtype]).reshape(-1) for name, value in self._chosen().items()}

    @property
    def knobs(self) -> Knobs:
        return read(self.on_the_wire())


PRESETS = {
    "default": Options(),
    # A smoke test: seconds on a CPU, with nothing worth looking at.
    "tiny": Options(
        content="hommage_klee", style="schotter", size=64, features=features.RANDOM, iterations=4, every=2, scales=2,
        film=True,
    ),
}  # fmt: skip

FILM_SIDE = 16_383
"""Maximum side of a WebP picture in pixels."""


@dataclass(frozen=True)
class Pictures:
    """A photograph and a painting, uint8 (H, W, 3)."""

    name: str
    content: np.ndarray
    style: np.ndarray
    sha256: str  # of both


def load_corpus(options: Options) -> Pictures:
    content, style = picture("--content", options.content), picture("--style", options.style)
    if options.size:
        height, width = _size(content)
        factor = options.size / max(height, width)
        size = round(height * factor), round(width * factor)
        if min(size) < painting.SMALLEST_SIDE:
            least = painting.SMALLEST_SIDE
            raise BadInput(f"--size: {options.size} leaves a side of {options.content} less than {least}; give more")
        content = painting.resized(content, size)
    if options.film and (longer := max(_size(content))) > FILM_SIDE:
        raise BadInput(f"--film: WebP has {FILM_SIDE} pixels a side at most, not {longer}; give a --size, or --no-film")
    if options.scales > (most := painting.max_scales(_size(content))):
        raise BadInput(f"--scales: {options.scales} are too many for this photograph at its size; give {most} or less")
    name = f"{Path(options.content).name} in the manner of {Path(options.style).name}"
    return Pictures(name, content, style, corpus.checksum_of_all([content, style]))


def picture(flag: str, source: str) -> np.ndarray:
    """A file's picture, upright and in colour, or the first one of a drawn corpus; uint8 (H, W, 3)."""
    if source in corpus.DRAWN:
        return corpus.DRAWN[source](1, seed=0)[0]
    if not Path(source).is_file():
        raise BadInput(f"{flag}: no picture {source!r}; name a file, or one of {', '.join(corpus.DRAWN)}")
    try:
        with Image.open(source) as opened:
            upright = np.asarray(photos.to_rgb(ImageOps.exif_transpose(opened), (255, 255, 255)))
    except Exception as error:  # what a damaged file makes Pillow's decoders raise is open-ended
        why = str(error).split("<")[0].strip() or type(error).__name__
        raise BadInput(f"{flag}: {source} can't be decoded ({why}); name another") from error
    if min(upright.shape[:2]) < painting.SMALLEST_SIDE:
        raise BadInput(
            f"{flag}: {source} is too small, {upright.shape[1]} x {upright.shape[0]}; "
            f"each side needs {painting.SMALLEST_SIDE} pixels or more"
        )
    return upright


def _size(picture: np.ndarray) -> painting.Size:
    height, width, _ = picture.shape
    return height, width


# --- painting ---


def train(options: Options, run: RunDir, corpus: Pictures) -> Path:
    """Paints, and returns the last checkpoint's path; the painting is painting.png beside it. Raises Stopped, after
    saving a checkpoint."""
    device, knobs = pick_device(), options.knobs
    vgg = features.load(options.features).to(device)
    sizes = painting.scales(_size(corpus.content), knobs.scales)
    shares = painting.split_iterations(knobs.iterations, len(sizes))
    scale_of = [scale for scale, share in enumerate(shares) for _ in range(share)]  # iteration -> scale

    def begin(scale: int, canvas: Tensor | None) -> tuple[Tensor, torch.optim.Optimizer, Closure]:
        """Begins a scale. Its canvas is the initial one, the previous scale's, enlarged, or a checkpoint's as it is."""
        photo = painting.planes(painting.resized(corpus.content, sizes[scale]))
        style = painting.planes(painting.resized(corpus.style, painting.fitted(_size(corpus.style), sizes[scale])))
        if canvas is None:
            canvas = torch.from_numpy(painting.initial_canvas(photo, knobs))[None]
        elif canvas.shape[2:] != photo.shape[1:]:
            canvas = torch.from_numpy(painting.enlarged(canvas[0].cpu().numpy(), sizes[scale]))[None]
        canvas = canvas.to(device).clone().requires_grad_()
        targets = targets_of(vgg, *(torch.from_numpy(each)[None].to(device) for each in (photo, style)))
        return canvas, make_optimizer(canvas, knobs.optimizer), Closure(vgg, canvas, targets, knobs)

    first = 0
    if (state := run.restore()) is not None:
        with run.restoring():
            first, scale = state["step"], state["scale"]
            canvas, optimizer, closure = begin(scale, state["canvas"])
            optimizer.load_state_dict(state["optimizer"])
            evaluations = state["evaluations"]
        closure()  # refills its cache for the last canvas, which an uninterrupted run still has: not counted
        closure.evaluations = evaluations
    else:
        scale = scale_of[0] if scale_of else len(sizes) - 1
        canvas, optimizer, closure = begin(scale, None)
        save_canvas(canvas, run.path / "samples" / f"{0:06d}.png")

    def checkpoint(step: int) -> None:
        run.save({
            "canvas": canvas.detach().cpu(), "optimizer": optimizer.state_dict(), "evaluations": closure.evaluations,
            "scale": scale, "step": step, "features": options.features,
        })  # fmt: skip

    for step in run.steps(first, knobs.iterations, save=checkpoint, every_minutes=options.checkpoint_minutes):
        if scale_of[step] != scale:
            scale, evaluations = scale_of[step], closure.evaluations
            canvas, optimizer, closure = begin(scale, canvas.detach())
            closure.evaluations = evaluations

        # --- one iteration, and its losses ---
        optimizer.step(closure)
        if knobs.optimizer == "adam":
            canvas.detach().clamp_(0, 1)  # as in the served painter; with L-BFGS neither clamps
        objective = closure()
        content, style, tv = closure.losses.tolist()
        stats = {"objective": objective, "content": content, "style": style, "total_variation": tv}
        line = ""
        if (step + 1) % options.every == 0 or step + 1 == knobs.iterations:
            line = " ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in stats.items())
            save_canvas(canvas, run.path / "samples" / f"{step + 1:06d}.png")
        run.record(step, line, **stats, evaluations=closure.evaluations, pixels=canvas[0, 0].numel())

    save_canvas(canvas, run.path / "painting.png")
    if options.film:
        save_film(run.path)
    return run.last


def save_canvas(canvas: Tensor, path: Path) -> None:
    with plots.in_place_of(path) as beside:
        Image.fromarray(painting.pixels(canvas[0].detach().cpu().numpy())).save(beside)


def save_film(run: Path, *, frame_ms: int = 100, last_ms: int = 2000) -> None:
    """Writes all samples, resized to the painting's size, as run/film.webp."""
    with Image.open(run / "painting.png") as painted:
        size = painted.size
    frames = [Image.open(path).resize(size, Image.Resampling.BICUBIC) for path in sorted(run.glob("samples/*.png"))]
    durations = [frame_ms] * (len(frames) - 1) + [last_ms]
    with plots.in_place_of(run / "film.webp") as beside:
        frames[0].save(beside, save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=85)


# --- what is served: the objective ---


def load_net(checkpoint: Path) -> Objective:
    """The objective with which a checkpoint's canvas was painted. Raises BadInput if it holds something else."""
    state = load_checkpoint(checkpoint)
    if "canvas" not in state or "features" not in state:
        raise BadInput(f"checkpoint {checkpoint}: not painter's; `training.run painter` writes those")
    return Objective(features.load(state["features"]), name=state["features"]).eval()


def served(net: Objective) -> Objective:
    """What is exported: canvas and targets in, losses and gradient out."""
    return net


def backbone(net: Objective) -> dict[str, str]:
    """The backbone's name and the SHA-256 of its weights, for the card."""
    digest = hashlib.sha256()
    for weights in (*net.weights, *net.biases):
        digest.update(weights.float().numpy().tobytes())
    return {"name": net.features, "sha256": digest.hexdigest()}


def evaluate(net: Objective, corpus: Pictures, *, out: Path) -> dict[str, float]:
    """The relative error of the hand-written gradient against autograd's, at the worst of several sizes."""
    vgg = features.load(net.features)
    return {"gradient_error": measures.gradient_error(net, vgg, corpus.content, corpus.style)}


@torch.no_grad()
def golden(net: Objective, corpus: Pictures) -> dict[str, np.ndarray]:
    """A request for zero iterations and its one answer: noise, and the eager objective's losses for it."""
    content, style = painting.resized(corpus.content, (61, 83)), painting.resized(corpus.style, (48, 40))
    asked = Options(iterations=0, start="noise", scales=1, content_layers=(0.25, 0, 1, 0.5), tv_weight=2)
    canvas = painting.initial_canvas(painting.planes(content), asked.knobs)
    losses, objective, *_ = net(
        *measures.inputs(net, canvas, painting.planes(content), painting.planes(style), asked.knobs)
    )
    return {
        "content": content, "style": style, **asked.on_the_wire(),
        "image": painting.pixels(canvas), "iteration": np.zeros(1, np.int32), "total": np.zeros(1, np.int32),
        "losses": losses[0].numpy(), "objective": objective[0].numpy(),
    }  # fmt: skip


@torch.no_grad()
def graph_golden(net: Objective, corpus: Pictures) -> dict[str, np.ndarray]:
    """The graph's inputs, at an odd size, and its outputs as the eager objective computes them."""
    content, style = (painting.planes(painting.resized(each, (37, 50))) for each in (corpus.content, corpus.style))
    asked = Options(start="noise", content_layers=(0.25, 0.5, 1, 0.5), tv_weight=2).knobs
    given = measures.inputs(net, painting.initial_canvas(content, asked), content, style, asked)
    names = [tensor.name for tensor in (*GRAPH.inputs, *GRAPH.outputs)]
    return {name: array.numpy() for name, array in zip(names, (*given, *net(*given)), strict=True)}
