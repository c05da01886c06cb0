"""Train the upscaler. Run: python -m training.run upscaler --corpus DIR --dry-run

A compact network that enlarges by 4, trained with the L1 loss (Lim et al. 2017) on photographs and on this project's
computer art; some of both are degraded like people's pictures: blurred, noisy, saved as JPEG.
"""

from __future__ import annotations

import copy
import math
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training import distributed, plots
from training.data import computer_art, corpus, lines, natural, photos
from training.data.degradations import BICUBIC, BOX, degraded, reduced, resized, woven
from training.devices import autocast, check_seed, pick_device
from training.errors import BadInput
from training.models.features import net as features
from training.models.features.net import content_loss
from training.models.upscaler import evaluate as measures
from training.models.upscaler.net import Served, Upscaler
from training.models.upscaler.spec import OVERLAP, SCALE
from training.options import at_least, not_negative, positive, share
from training.quantize import Quantization, spread
from training.rundir import RunDir, load_checkpoint
from training.schedules import warm_up_cosine

HELD_OUT = 100
"""maximum number of photographs held out of the corpus if no --test is given"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Defaults give what ships, in one run; version 1 took two, see its card. `batch` is in patches, a step's."""

    corpus: str = ""
    """folder or zip of photographs; left out: Imagenette, fetched into $ATELIER_DATA once"""
    test: str = ""
    """folder or zip of photographs to evaluate on, which are not trained on; left out: one in ten of the corpus, 100 at
    most"""
    photos: int = 0
    """maximum number of photographs to take from the corpus; 0 takes all"""
    init: str = ""
    """checkpoint to start from, with its channels and layers"""
    seed: int = 0
    """random seed of the initial weights, the drawings and the batches"""
    side: int = 1024
    """maximum longer side of a photograph in pixels"""
    sizes: int = 3
    """number of sizes in which each photograph is kept: its own, and others down to a half, which are sharper"""
    drawings: int = 64
    """number of drawings of each kind, at each of two sizes"""
    drawn: float = 0.25
    """share of the patches that are computer art"""
    degraded: float = 0.1
    """share of the patches that are reduced by a random kernel and may be blurred, noisy or JPEG-compressed, too"""
    woven: float = 0.5
    """share of the computer art that is small as a generator draws it, with grain and a weave, for wgan_x4"""
    channels: int = 48
    """channels of the convolutions"""
    layers: int = 12
    """convolutions between the first and the last; more of them see farther, 14 as far as tiles overlap"""
    # 500 more steps, at 2e-4, with 0.05 reduced the gain on photographs from 1.08 dB to 0.69 and left a pattern of dots
    # on them; with 0.005 it is 0.98, and no difference is visible.
    perceptual: float = 0.0
    """weight of the perceptual loss, which --features gives, against 1 for the L1 loss"""
    features: str = features.OWN
    """backbone of the perceptual loss: vgg16-half, vgg16, vgg19, random, or a file in torchvision's form"""
    feature_layers: tuple[str, ...] = ("conv2_2", "conv3_3")
    """backbone layers of the perceptual loss"""
    size: int = 128
    """side of a patch after it is enlarged, in pixels"""
    batch: int = 16
    """patches per batch"""
    steps: int = 10_000
    """training steps; one step is one batch"""
    lr: float = 2e-3
    """Adam learning rate; rises over the first 2 % of the steps, then falls to zero along a cosine"""
    ema: float = 0.999
    """decay of the exponential moving average of the weights, which is evaluated and served; 0 serves the last
    weights"""
    sample_every: int = 500
    """steps between two sheets of samples"""
    checkpoint_minutes: float = 5.0
    """minutes between two checkpoints"""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        at_least(self, photos=0, seed=0, sizes=1, drawings=1, channels=1, layers=1, batch=1, steps=1)
        at_least(self, side=self.size, size=32, sample_every=1)
        positive(self, "lr", "checkpoint_minutes")
        not_negative(self, "perceptual")
        share(self, "drawn", "degraded", "woven", "ema")
        if self.size % SCALE or self.size > lines.SIZE:
            raise BadInput(f"--size: {self.size}; give a multiple of {SCALE}, {lines.SIZE} at most")
        if self.layers > OVERLAP - 2:
            raise BadInput(
                f"--layers: {self.layers} see farther than the {OVERLAP} pixels that tiles overlap by; give 14"
            )


# Takes seconds on a CPU: a smoke test, whose output need not be sharp.
TINY: dict[str, Any] = {
    "photos": 32, "sizes": 2, "drawings": 2, "channels": 4, "layers": 2, "size": 32, "batch": 4, "steps": 4,
    "sample_every": 2, "features": features.RANDOM, "feature_layers": ("conv1_1",),
}  # fmt: skip
CORPUS_FROM_SEED = True
"""Whether the corpus that is drawn for a run depends on its seed, too."""

PRESETS = {"default": Options(), "tiny": Options(**TINY)}

Pair = tuple[np.ndarray, np.ndarray]
"""a picture at low resolution, uint8 (H, W, 3), and at high resolution, (4H, 4W, 3)"""


@dataclass(frozen=True)
class Pictures:
    """Photographs as pairs, drawings to cut pairs from, and held-out sets of both."""

    name: str
    photos: list[Pair]
    drawings: list[np.ndarray]
    held_out: dict[str, list[Pair]]
    sha256: str  # of all of them

    @cached_property
    def pixel_counts(self) -> np.ndarray:
        """Cumulative pixel counts of the photographs: each is sampled in proportion to its size."""
        return np.cumsum([low.shape[0] * low.shape[1] for low, _ in self.photos])


# --- pictures ---


def load_corpus(options: Options) -> Pictures:
    source = Path(options.corpus) if options.corpus else natural.imagenette()
    names = photos.find(source)
    rng = np.random.default_rng(13)
    names = [names[k] for k in rng.permutation(len(names))[: options.photos or None]]
    if options.test:
        test = Path(options.test)
        held, kept = read(test, photos.find(test, flag="--test"), options, flag="--test"), read(source, names, options)
    else:
        count = min(HELD_OUT, -(-len(names) // 10))
        held, kept = read(source, names[:count], options), read(source, names[count:], options)
    if len(kept) < corpus.LEAST or not held:
        raise BadInput(
            f"--corpus: {len(kept)} photographs of {source} to learn from and {len(held)} to evaluate on are too few; "
            f"at least {corpus.LEAST} and 1, of {options.size} pixels a side or more"
        )
    pairs = [pair(smaller) for photo in kept for smaller in in_sizes(photo, options, rng)]
    drawings = draw(options.drawings, seed=options.seed)
    held_out = {
        "photos": [pair(photo) for photo in held],
        "lines": [pair(each) for each in lines.draw(32, seed=corpus.HELD_OUT_SEED, all_uniform=True)],
        "drawings": [pair(each, BOX) for each in draw_large(2, seed=corpus.HELD_OUT_SEED)],
    }
    everything = [high for each in (pairs, *held_out.values()) for _, high in each] + drawings
    name = f"{source.name}; computer art" + (f"; test: {Path(options.test).name}" if options.test else "")
    return Pictures(name, pairs, drawings, held_out, corpus.checksum_of_all(everything))


def read(source: Path, names: list[str], options: Options, *, flag: str = "--corpus") -> list[np.ndarray]:
    """The photographs that are large enough to cut a patch from; prints how many are left out."""
    pictures = photos.read_whole(source, names, side=options.side, flag=flag)
    large = [picture for picture in pictures if min(picture.shape[:2]) >= options.size]
    if len(large) < len(pictures):
        few = len(pictures) - len(large)
        print(f"{flag}: left out {few} photographs smaller than {options.size} pixels", file=sys.stderr)
    return large


def in_sizes(photo: np.ndarray, options: Options, rng: np.random.Generator) -> list[np.ndarray]:
    """The photograph in its own size and in random ones down to half of it, but large enough to cut a patch from."""
    height, width, _ = photo.shape
    least = min(1.0, max(0.5, options.size / min(height, width)))
    shares = rng.uniform(least, 1, options.sizes - 1)
    return [photo, *(resized(photo, math.ceil(height * share), math.ceil(width * share)) for share in shares)]


def pair(picture: np.ndarray, kernel: Any = BICUBIC) -> Pair:
    """The picture reduced by 4, and the picture itself, its sides cropped to multiples of 4."""
    height, width, _ = picture.shape
    high = np.ascontiguousarray(picture[: height // SCALE * SCALE, : width // SCALE * SCALE])
    return reduced(high, SCALE, kernel), high


def draw(count: int, *, seed: int) -> list[np.ndarray]:
    """`count` drawings of each corpus at its own size, 128 x 128, and as many others at 512 x 512."""
    small = [picture for make in corpus.DRAWN.values() for picture in make(count, seed=seed)]
    return small + draw_large(count, seed=seed + 1)


def draw_large(count: int, *, seed: int) -> list[np.ndarray]:
    """512 x 512: plotter drawings drawn at that size, and lines whose pixels are enlarged to 4 x 4."""
    plotted = [p for make in computer_art.CORPORA.values() for p in make(count, seed=seed, size=SCALE * lines.SIZE)]
    lined = [p for name in corpus.THREE_LINES for p in corpus.DRAWN[name](count, seed=seed)]
    return plotted + [picture.repeat(SCALE, 0).repeat(SCALE, 1) for picture in lined]


def sample_batch(corpus: Pictures, options: Options, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Patches uint8 (N, size / 4, size / 4, 3) and (N, size, size, 3), randomly rotated and mirrored.

    Photographs are reduced when they are read, and only degraded or drawn patches are reduced here: so a batch of 16
    takes 5 ms of the 160 ms that a step takes on one core.
    """
    pairs = []
    shares = (options.drawn, options.degraded, options.woven)
    for is_drawn, is_degraded, is_woven in rng.random((options.batch, 3)) < shares:
        low, high = drawn_patch(corpus, options, rng) if is_drawn else photo_patch(corpus, options, rng)
        if is_degraded:
            low = degraded(high, SCALE, rng)
        elif is_drawn and is_woven:
            low = woven(low, rng)
        turn, mirror = rng.integers(4), rng.integers(2)
        pairs.append([np.rot90(each, turn)[:, :: 1 - 2 * mirror] for each in (low, high)])
    lows, highs = zip(*pairs, strict=True)
    return np.stack(lows), np.stack(highs)


def photo_patch(corpus: Pictures, options: Options, rng: np.random.Generator) -> Pair:
    pixel = rng.integers(corpus.pixel_counts[-1])
    low, high = corpus.photos[np.searchsorted(corpus.pixel_counts, pixel, side="right")]
    side = options.size // SCALE
    top, left = (int(rng.integers(n - side + 1)) for n in low.shape[:2])
    return (
        low[top : top + side, left : left + side],
        high[SCALE * top :, SCALE * left :][: options.size, : options.size],
    )


def drawn_patch(corpus: Pictures, options: Options, rng: np.random.Generator) -> Pair:
    """Reduced with the bicubic or the box filter; the latter brought the plotter's drawings to their size."""
    drawing = corpus.drawings[rng.integers(len(corpus.drawings))]
    top, left = rng.integers(len(drawing) - options.size + 1, size=2)
    high = np.ascontiguousarray(drawing[top : top + options.size, left : left + options.size])
    return reduced(high, SCALE, (BICUBIC, BOX)[rng.integers(2)]), high


# --- training ---


def train(options: Options, run: RunDir, corpus: Pictures) -> Path:
    """Trains for options.steps and returns the last checkpoint. If stopped, saves one and raises Stopped."""
    device = pick_device()
    torch.manual_seed(options.seed)
    # A resumed run builds the network that its checkpoint describes: --init's file may be gone or hold another by now.
    if (state := run.restore()) is None:
        net = load_net(Path(options.init)).net if options.init else Upscaler(options.channels, options.layers)
    else:
        with run.restoring():
            net = Upscaler(**state["upscaler"])
    net.train().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = copy.deepcopy(net).requires_grad_(False)
    adam = torch.optim.Adam(net.parameters(), options.lr, fused=True)
    vgg = load_vgg(options).to(device) if options.perceptual else None
    ddp_net, shard = distributed.data_parallel(net), distributed.shard(options.batch)
    first = 0
    if state is not None:
        with run.restoring():
            net.load_state_dict(state["net"])
            ema.load_state_dict(state["average"])
            adam.load_state_dict(state["adam"])
            first = state["step"]

    def checkpoint(step: int) -> None:
        run.save({
            "net": net.state_dict(), "average": ema.state_dict(), "adam": adam.state_dict(), "step": step,
            "upscaler": net.options,
        })  # fmt: skip

    for step in run.steps(first, options.steps, save=checkpoint, every_minutes=options.checkpoint_minutes):
        adam.param_groups[0]["lr"] = options.lr * warm_up_cosine((step + 1) / options.steps, 0.02)

        # --- this worker's shard of the patches; each step has its own seed, so resuming needs no RNG state ---
        batch = sample_batch(corpus, options, np.random.default_rng((options.seed, step)))
        low, high = (pixels(each[shard], device) for each in batch)

        # --- one step ---
        with autocast(device, True):
            enlarged = ddp_net(low)
        loss = l1 = (enlarged.float() - high).abs().mean()
        stats = {"l1": l1.item()}
        if vgg is not None:
            with autocast(device, True):
                activations, targets = (vgg(each, options.feature_layers) for each in (enlarged, high))
            activations, targets = ({name: x.float() for name, x in each.items()} for each in (activations, targets))
            perceptual = content_loss(activations, targets).mean()
            loss = l1 + options.perceptual * perceptual
            stats["perceptual"] = perceptual.item()
        stats = distributed.all_reduce_mean(stats)
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():  # the average looks back less far at first
            decay = min(options.ema, (1 + step) / (10 + step))
            for mean, now in zip(ema.parameters(), net.parameters(), strict=True):
                mean.lerp_(now, 1 - decay)

        # --- log ---
        line = ""
        if (step + 1) % 50 == 0 or step + 1 == options.steps:
            line = " ".join(f"{name} {value:.5f}" for name, value in stats.items())
        run.record(step, line, **stats)
        if (step + 1) % options.sample_every == 0 or step + 1 == options.steps:
            save_samples(ema, corpus, run.path / "samples" / f"{step + 1:06d}.png")

    plots.save_convergence(run.stats(), run.path / "convergence.png", title=run.path.name)
    return run.last


def load_vgg(options: Options) -> features.Vgg:
    """The backbone of the perceptual loss. Raises BadInput for a layer that it doesn't have."""
    vgg = features.load(options.features)
    features.check_layers(vgg, options.feature_layers, flag="--feature-layers")
    return vgg


def pixels(pictures: np.ndarray, device: torch.device) -> Tensor:
    """uint8 (N, H, W, 3) -> float (N, 3, H, W) in [0, 1], still in channels-last memory."""
    return torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float() / 255


def save_samples(net: Upscaler, corpus: Pictures, path: Path) -> None:
    """Saves a sheet of some held-out pictures: low-res pixels, bicubic, the network's output, ground truth."""
    shown = [each for pairs in corpus.held_out.values() for each in pairs[:2]]
    measures.save_sheet([measures.row(measures.enlarger(Served(net)), *each) for each in shown], path)


# --- the interface of a recipe ---


def load_net(checkpoint: Path) -> Served:
    """The averaged network of a checkpoint. Raises BadInput if it holds another network."""
    state = load_checkpoint(checkpoint)
    try:
        net = Upscaler(**state["upscaler"])
        net.load_state_dict(state["average"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise BadInput(f"checkpoint {checkpoint}: not upscaler's; `training.run upscaler` writes those") from error
    return Served(net).eval()


def served(net: Served) -> Served:
    """The module to export: uint8 picture in, uint8 picture out."""
    return net


@torch.no_grad()
def golden(net: Served, _corpus: Pictures) -> dict[str, np.ndarray]:
    """Drawings, because photographs may not be free to publish, and the eager model's output for them."""
    low_res = computer_art.CORPORA["hommage_klee"](3, seed=0)[:, :61, :83].copy()  # not a round size
    return {"low_res": low_res, "image": net(torch.from_numpy(low_res)).numpy()}


def quantization(_net: Served, corpus: Pictures) -> Quantization:
    """Calibrates on up to 32 photographs and 32 drawings."""
    lows = [corpus.photos[k][0] for k in spread(len(corpus.photos))]
    lows += [reduced(corpus.drawings[k], SCALE, BICUBIC) for k in spread(len(corpus.drawings))]
    return Quantization(inputs={"low_res": lows})


def evaluate(net: Served, corpus: Pictures, *, out: Path) -> dict[str, float]:
    """Metrics on the held-out sets; writes upscaled.png, which also shows bicubic and the ground truth, into `out`."""
    return measures.evaluate(measures.enlarger(net), corpus.held_out, out=out)
