"""Train the colorizer: gray landscapes in, colours out. Run: python -m training.run colorizer --corpus DIR --dry-run

Two stages in one run. First a U-Net learns to give each place the colours that it has on average: right, and paler
than any photograph. Then its decoder goes on, from a copy, against a critic that tells photographs from its pictures
(Isola et al. 2017), and what the first stage learnt stays part of what it is asked for. Both are kept, and served.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training import plots
from training.data import computer_art, corpus, natural, photos
from training.devices import autocast, check_seed, pick_device
from training.errors import BadInput
from training.models.colorizer import evaluate as measures
from training.models.colorizer.net import CHROMA, Colorizer, Critic, Encoder, Served, gray_of, lab
from training.models.features import net as features
from training.models.features import resnet
from training.quantize import Quantization, spread
from training.rundir import RunDir, Stopped, load_checkpoint


@dataclass(frozen=True, kw_only=True)
class Options:
    """Defaults are the run that ships. One step is one batch; `batch` is in pictures."""

    corpus: str = ""
    """a folder or zip of colour photographs; left out: Imagenette's, fetched into $ATELIER_DATA once"""
    test: str = ""
    """photographs to evaluate on, which are not trained on; left out: one in ten of the corpus, 500 at most"""
    pictures: int = 0
    """the most to take; 0 takes all"""
    init: str = ""
    """a checkpoint to start from, which brings its network along; only --size has to be as it was"""
    seed: int = 0
    features: str = features.OWN
    """the encoder: vgg16-half, vgg16, vgg19, resnet18, random, or a file in torchvision's form"""
    color: str = "lab"
    """what the network gives: lab (chroma alone) or rgb"""
    size: int = 128
    """pixels a side of what the network sees, a multiple of 32"""
    whole: bool = False
    """chroma at all of that size; left out: at half of it, which is what most photographs carry"""
    widths: tuple[int, ...] = (128, 64, 48)
    """the decoders' channels, from the coarsest layer on"""
    batch: int = 16
    steps: int = 2_200
    """of regression"""
    lr: float = 2e-3
    """AdamW's for the decoder; rises over the first tenth, then falls to zero along a cosine"""
    encoder_lr: float = 1e-4
    """and for the encoder's later blocks; the first two stay as they are"""
    refine_steps: int = 1_000
    """against the critic"""
    refine_lr: float = 2e-4
    """Adam's, of the decoder and of the critic, with beta1 of 0.5; falls to zero over the second half"""
    critic_weight: float = 0.05
    """of what the critic says, against 1 for the distance to the true colours"""
    sample_every: int = 250
    checkpoint_minutes: float = 5.0

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for name, least in [("pictures", 0), ("batch", 2), ("steps", 1), ("refine_steps", 0), ("sample_every", 1)]:
            if getattr(self, name) < least:
                raise BadInput(f"--{name.replace('_', '-')}: {getattr(self, name)} is too few; give {least} or more")
        for name in ("lr", "encoder_lr", "refine_lr", "checkpoint_minutes"):
            if not getattr(self, name) > 0:
                raise BadInput(f"--{name.replace('_', '-')}: {getattr(self, name)} must be above 0")
        if not 0 <= self.critic_weight < float("inf"):
            raise BadInput(f"--critic-weight: {self.critic_weight} must be 0 or more")
        if self.size < 32 or self.size % 32:
            raise BadInput(f"--size: {self.size} must be a multiple of 32")
        if self.color not in ("lab", "rgb"):
            raise BadInput(f"--color: no {self.color!r}; there are lab and rgb")
        if len(self.widths) != 3 or min(self.widths) < 1:
            raise BadInput(f"--widths: {self.widths}; give three, above 0")


# The source: RGB, and all of 128 x 128. What it leaves open: ten epochs of its 20,000 pictures, then five.
SEED: dict[str, Any] = {
    "features": resnet.NAME, "color": "rgb", "whole": True, "widths": (256, 128, 64),
    "steps": 12_500, "refine_steps": 6_250,
}  # fmt: skip
# Seconds on a CPU: that the path works.
TINY: dict[str, Any] = {
    "pictures": 40, "size": 32, "widths": (8, 8, 8), "batch": 4, "steps": 3, "refine_steps": 3, "sample_every": 3,
    "features": features.RANDOM,
}  # fmt: skip
PRESETS = {"default": Options(), "seed": Options(**SEED), "tiny": Options(**TINY)}

ROOM = 1.125
"""Pictures are kept so much larger than the network's size, for random crops of them."""
TEST_SIZE = 160
"""Pixels a side of the pictures to evaluate on."""


@dataclass(frozen=True)
class Photographs:
    """Pictures to train on uint8 (N, S, S, 3), and others to evaluate on, which may be larger."""

    name: str
    images: np.ndarray
    held_out: np.ndarray
    sha256: str  # of both


def check_init(options: Options) -> None:
    """A network is trained at the size at which it is served. Raises BadInput for another, before a picture is read."""
    if (sees := restore_net(Path(options.init)).net.size) != options.size:
        raise BadInput(f"--size: {options.size}, but the network of {options.init} sees {sees} pixels; give that")


def load_corpus(options: Options) -> Photographs:
    source = Path(options.corpus) if options.corpus else natural.imagenette()
    size = round(ROOM * options.size)
    names = photos.find(source)
    names = [names[k] for k in np.random.default_rng(13).permutation(len(names))[: options.pictures or None]]
    held = 0 if options.test else min(500, max(1, len(names) // 10))
    if (count := len(names) - held) < corpus.LEAST:
        raise BadInput(f"--corpus: {count} pictures in {source} to train on are too few; at least {corpus.LEAST}")
    if options.test:
        images, _ = photos.load(source, count=options.pictures or None, seed=13, size=size)
        held_out, _ = photos.load(Path(options.test), size=TEST_SIZE, flag="--test")
    else:
        images, _ = photos.read(source, names[held:], size=size)
        held_out, _ = photos.read(source, names[:held], size=TEST_SIZE)
    name = source.name + (f"; test: {Path(options.test).name}" if options.test else "")
    digests = corpus.checksum(images) + corpus.checksum(held_out)
    return Photographs(name, images, held_out, corpus.checksum(np.frombuffer(digests.encode(), np.uint8)))


def train(options: Options, run: RunDir, corpus: Photographs) -> Path:
    """Train both stages and return the last checkpoint. Raises Stopped, with a checkpoint."""
    device = pick_device()
    torch.manual_seed(options.seed)
    # What goes on is what the checkpoint says: --init may have gone since, or hold another network by now.
    if (state := run.restore()) is None:
        net, encoder = build_net(options)
    else:
        with run.restoring():
            before = net_of(state)
            net, encoder = before.net, before.features
    net.encoder.requires_grad_(True)  # but for its first blocks
    for layer in net.encoder.frozen:
        layer.requires_grad_(False)
    net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    critic = Critic(1 + (2 if net.color == "lab" else 3)).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    trainable = [parameter for parameter in net.encoder.parameters() if parameter.requires_grad]
    adam = torch.optim.AdamW([
        {"params": net.decoders[0].parameters(), "rate": options.lr},
        {"params": trainable, "rate": options.encoder_lr},
    ], weight_decay=0.01, fused=True)  # fmt: skip
    refine_adam = torch.optim.Adam(net.decoders[1].parameters(), options.refine_lr, betas=(0.5, 0.9), fused=True)
    critic_adam = torch.optim.Adam(critic.parameters(), options.refine_lr, betas=(0.5, 0.9), fused=True)
    parts = {"net": net, "critic": critic, "adam": adam, "refining": refine_adam, "judging": critic_adam}
    images = torch.from_numpy(corpus.images)

    rng = torch.Generator().manual_seed(options.seed)
    first = 0
    if state is not None:
        with run.restoring():
            for name, part in parts.items():
                part.load_state_dict(state[name])
            rng.set_state(state["luck"])
            first = state["step"]

    def checkpoint(step: int) -> None:
        states = {name: part.state_dict() for name, part in parts.items()}
        shape = None if isinstance(there := net.encoder.backbone, resnet.ResNet18) else (there.blocks, there.widths)
        about = {"network": net.options, "vgg": shape, "features": encoder}
        run.save({**states, **about, "luck": rng.get_state(), "step": step})

    last_saved = time.monotonic()
    end = options.steps + options.refine_steps
    for step in run.steps(first, end):
        gray, truth = sample_batch(images, options, rng, device, net)
        stats = {"distance": 0.0, "critic": 0.0, "doubt": 0.0}

        # --- first stage: the colours that there are on average ---
        if step < options.steps:
            net.train()
            for group in adam.param_groups:
                group["lr"] = group["rate"] * lr_multiplier((step + 1) / options.steps)
            with autocast(device, True):
                predicted = net(gray, 1)
            distance = F.l1_loss(predicted.float(), truth)
            adam.zero_grad()
            distance.backward()
            adam.step()
            stats["distance"] = distance.item()
            if step + 1 == end:  # without a second stage, what is served as it is the first
                net.decoders[1].load_state_dict(net.decoders[0].state_dict())

        # --- second stage: colours that a critic takes for a photograph's ---
        else:
            if step == options.steps:
                net.decoders[1].load_state_dict(net.decoders[0].state_dict())
            net.eval()
            net.decoders[1].train()
            left = (end - step) / options.refine_steps
            for group in (*refine_adam.param_groups, *critic_adam.param_groups):
                group["lr"] = options.refine_lr * min(1.0, 2 * left)
            with torch.no_grad(), autocast(device, True):
                activations = net.encoder(gray)
            with autocast(device, True):
                predicted = net.decoders[1](gray, activations)
            condition = F.interpolate(gray, size=truth.shape[2:], mode="area")

            # The critic learns first, from the same pictures, by the hinge loss (Lim and Ye 2017).
            with autocast(device, True):
                real = critic(torch.cat([condition, truth], 1)).float()
                fake = critic(torch.cat([condition, predicted.detach().float()], 1)).float()
            critic_loss = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
            critic_adam.zero_grad()
            critic_loss.backward()
            critic_adam.step()

            with autocast(device, True):
                adversarial_loss = -critic(torch.cat([condition, predicted.float()], 1)).float().mean()
            distance = F.l1_loss(predicted.float(), truth)
            refine_adam.zero_grad()
            (distance + options.critic_weight * adversarial_loss).backward()
            refine_adam.step()
            stats = {"distance": distance.item(), "critic": critic_loss.item(), "doubt": adversarial_loss.item()}

        # --- what it says ---
        line = ""
        if (step + 1) % 50 == 0 or step + 1 == end:
            line = " ".join(f"{name} {value:.4f}" for name, value in stats.items())
        run.record(step, line, **stats)
        if (step + 1) % options.sample_every == 0 or step + 1 == end:
            save_samples(net, corpus, run.path / "samples" / f"{step + 1:06d}.png")
        if run.terminated:
            checkpoint(step + 1)
            raise Stopped
        if time.monotonic() - last_saved > 60 * options.checkpoint_minutes:
            checkpoint(step + 1)
            last_saved = time.monotonic()
    checkpoint(end)
    rows, name = run.stats(), run.path.name
    distances = [{key: row[key] for key in ("step", "distance")} for row in rows]
    plots.save_convergence(distances, run.path / "convergence.png", title=name)
    if options.refine_steps:
        refined = [row for row in rows if row["step"] >= options.steps]
        plots.save_convergence(refined, run.path / "critic.png", title=f"{name}: second stage")
    return run.last


def lr_multiplier(done: float) -> float:
    """Of the learning rate after that share of a stage: linear warm-up over a tenth, then half a cosine to zero."""
    return min(10 * done, 0.5 + 0.5 * float(np.cos(np.pi * max(0.0, done - 0.1) / 0.9)))


def sample_batch(
    images: Tensor, options: Options, rng: torch.Generator, device: torch.device, net: Colorizer
) -> tuple[Tensor, Tensor]:
    """Gray (N, 1, S, S) in [0, 1], and what a decoder should make of it, (N, C, S, S) or half that size.

    Crops of other shapes come squeezed to a square, as pictures that are no squares do when they are served.
    """
    chosen = torch.randint(len(images), (options.batch,), generator=rng)
    least = round(images.shape[1] / ROOM)
    height, width = (torch.randint(least, images.shape[1] + 1, (2,), generator=rng)).tolist()
    top, left = (int(torch.randint(images.shape[1] - side + 1, (), generator=rng)) for side in (height, width))
    mirrored = (torch.rand(options.batch, generator=rng) < 0.5)[:, None, None, None]
    crop = images[chosen, top : top + height, left : left + width].permute(0, 3, 1, 2)
    crop = torch.where(mirrored, crop.flip(3), crop).to(device).float() / 255
    crop = F.interpolate(crop, size=(options.size, options.size), mode="bilinear", antialias=True)
    picture = crop.clamp(0, 1).contiguous(memory_format=torch.channels_last)
    truth = lab(picture)[:, 1:] / CHROMA if net.color == "lab" else picture
    return gray_of(picture), F.avg_pool2d(truth, net.stride) if net.stride > 1 else truth


def build_net(options: Options) -> tuple[Colorizer, str]:
    """The network at its beginning, and what its encoder was before it."""
    if options.init:
        before = restore_net(Path(options.init))
        return before.net, before.features
    encoder = Encoder(pretrained(options.features))
    net = Colorizer(encoder, options.widths, color=options.color, whole=options.whole, size=options.size)
    return net, options.features


def pretrained(name: str) -> features.Vgg | resnet.ResNet18:
    """By its name, or from a file of either kind. Raises BadInput as their loaders do."""
    if name == resnet.NAME or (Path(name).is_file() and "layer1.0.conv1.weight" in features.read(Path(name))):
        return resnet.load(name)
    return features.load(name)


@torch.no_grad()
def save_samples(net: Colorizer, corpus: Photographs, path: Path, *, count: int = 8) -> None:
    """A sheet of the same held-out pictures each time: gray, first stage, second stage, truth."""
    eager = Served(net).to(next(net.parameters()).device)
    plots.save_grid(measures.side_by_side(eager, corpus.held_out[:count]), path, columns=8)
    net.train()


def load_net(checkpoint: Path) -> Served:
    """The network of a checkpoint, as it is served. BadInput if it holds another network."""
    return restore_net(checkpoint).packed()


def restore_net(checkpoint: Path) -> Served:
    """The same with its norms, to go on training."""
    state = load_checkpoint(checkpoint)
    try:
        return net_of(state)
    except (KeyError, TypeError, RuntimeError) as error:
        raise BadInput(f"checkpoint {checkpoint}: not colorizer's; `training.run colorizer` writes those") from error


def net_of(state: dict[str, Any]) -> Served:
    """The same, of a checkpoint's content."""
    encoder = Encoder(features.Vgg(*state["vgg"]) if state["vgg"] else resnet.ResNet18())
    net = Colorizer(encoder, **state["network"])
    net.load_state_dict(state["net"])
    return Served(net, features=state["features"])


def served(net: nn.Module) -> nn.Module:
    """What is exported: uint8 gray and stage in, uint8 picture out."""
    assert isinstance(net, Served)
    return net


def backbone(net: nn.Module) -> dict[str, str]:
    """What its encoder was before it learnt colours, for the card."""
    assert isinstance(net, Served)
    return {"name": net.features}


@torch.no_grad()
def golden(net: nn.Module, corpus: Photographs) -> dict[str, np.ndarray]:
    """Drawn pictures in gray, both stages and a mixture, and the eager model's colours.

    Drawn, since it is published, and the photographs may not be anyone's to publish.
    """
    gray = computer_art.CORPORA["hommage_klee"](4, seed=0)[:, :61, :83, :1].copy()  # of no round size
    stage = np.array([[1], [2], [1.5], [2]], np.float32)
    image = net(torch.from_numpy(gray), torch.from_numpy(stage)).numpy()
    return {"gray": gray, "stage": stage, "image": image}


def quantization(_net: nn.Module, corpus: Photographs) -> Quantization:
    """All but what mixes colours, which is no part of the network."""
    grays = [measures.gray_levels(corpus.images[k]) for k in spread(len(corpus.images))]
    return Quantization(inputs={"gray": grays, "stage": [np.array([2], np.float32)] * len(grays)}, floats=("/Conv",))


def evaluate(net: nn.Module, corpus: Photographs, *, out: Path) -> dict[str, float]:
    """Measures on photographs held out; writes colorized.png, gray, both stages and truth, into `out`."""
    assert isinstance(net, Served)
    return measures.evaluate(net, corpus.held_out, corpus.images, out=out)
