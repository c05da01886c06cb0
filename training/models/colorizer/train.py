"""Train the colorizer: gray landscapes in, colours out. Run: python -m training.run colorizer --corpus DIR --dry-run

Two stages in one run. First a U-Net learns by regression to predict each place's average colours: right, but paler than
any photograph. Then a copy of its decoder is trained against a critic that tells photographs from its pictures (Isola
et al. 2017), with the first stage's loss as part of its objective. Both decoders are kept, and served.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training import plots
from training.data import computer_art, corpus, natural, photos
from training.devices import autocast, check_seed, pick_device
from training.errors import BadInput
from training.models.colorizer import evaluate as measures
from training.models.colorizer.net import CHROMA, Colorizer, Critic, Encoder, Served, gray_of, lab
from training.models.features import net as features
from training.models.features import resnet
from training.options import at_least, not_negative, one_of, positive
from training.quantize import Quantization, spread
from training.rundir import RunDir, load_checkpoint
from training.schedules import warm_up_cosine


@dataclass(frozen=True, kw_only=True)
class Options:
    """Defaults are the run that ships. One step is one batch; `batch` is in pictures."""

    corpus: str = ""
    """folder or zip of colour photographs; left out: Imagenette, fetched into $ATELIER_DATA once"""
    test: str = ""
    """folder or zip of photographs to evaluate on, which are not trained on; left out: one in ten of the corpus, 500 at
    most"""
    pictures: int = 0
    """maximum number of photographs to take from the corpus; 0 takes all"""
    init: str = ""
    """checkpoint to start from, which brings its network along; only --size has to be as it was"""
    seed: int = 0
    """random seed of the initial weights and the batches"""
    features: str = features.OWN
    """pretrained encoder: vgg16-half, vgg16, vgg19, resnet18, random, or a file in torchvision's form"""
    color: str = "lab"
    """colour space of the output: lab (chroma alone) or rgb"""
    size: int = 128
    """side of the network's input in pixels, a multiple of 32"""
    whole: bool = False
    """output at the input's full resolution; off: at half of it, which is what most photographs carry of chroma"""
    widths: tuple[int, ...] = (128, 64, 48)
    """channels of the decoders, from the coarsest layer on"""
    batch: int = 16
    """pictures per batch"""
    steps: int = 2_200
    """steps of stage 1 (regression)"""
    lr: float = 2e-3
    """AdamW learning rate of the decoder in stage 1; rises over the first tenth of its steps, then falls to zero along
    a cosine"""
    encoder_lr: float = 1e-4
    """AdamW learning rate of the encoder's unfrozen blocks in stage 1; its first blocks stay as they are"""
    refine_steps: int = 1_000
    """steps of stage 2 (against the critic); 0 leaves it out"""
    refine_lr: float = 2e-4
    """Adam learning rate of the decoder and the critic in stage 2, with a beta1 of 0.5; falls to zero over the second
    half of its steps"""
    critic_weight: float = 0.05
    """weight of the adversarial loss in stage 2, against 1 for the L1 loss"""
    sample_every: int = 250
    """steps between two sheets of samples"""
    checkpoint_minutes: float = 5.0
    """minutes between two checkpoints"""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        at_least(self, pictures=0, batch=2, steps=1, refine_steps=0, sample_every=1)
        positive(self, "lr", "encoder_lr", "refine_lr", "checkpoint_minutes")
        not_negative(self, "critic_weight")
        one_of(self, color=("lab", "rgb"))
        if self.size < 32 or self.size % 32:
            raise BadInput(f"--size: {self.size} must be a multiple of 32")
        if len(self.widths) != 3 or min(self.widths) < 1:
            raise BadInput(f"--widths: {self.widths}; give three, above 0")


# The source's settings: RGB, at the full 128 x 128. It leaves the steps open; these are ten epochs of its 20,000
# pictures, then five.
SEED: dict[str, Any] = {
    "features": resnet.NAME, "color": "rgb", "whole": True, "widths": (256, 128, 64),
    "steps": 12_500, "refine_steps": 6_250,
}  # fmt: skip
# A smoke test: seconds on a CPU.
TINY: dict[str, Any] = {
    "pictures": 40, "size": 32, "widths": (8, 8, 8), "batch": 4, "steps": 3, "refine_steps": 3, "sample_every": 3,
    "features": features.RANDOM,
}  # fmt: skip
PRESETS = {"default": Options(), "seed": Options(**SEED), "tiny": Options(**TINY)}

ROOM = 1.125
"""Factor by which pictures are kept larger than the network's input, for random crops."""
TEST_SIZE = 160
"""Side of the pictures to evaluate on in pixels."""


@dataclass(frozen=True)
class Photographs:
    """Pictures to train on uint8 (N, S, S, 3), and others to evaluate on, which may be larger."""

    name: str
    images: np.ndarray
    held_out: np.ndarray
    sha256: str  # of both


def check_init(options: Options) -> None:
    """Raises BadInput if --size is not the --init network's, since a network is trained at the size at which it is
    served. Call it before any picture is read."""
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
    return Photographs(name, images, held_out, corpus.checksum_of_all([images, held_out]))


def train(options: Options, run: RunDir, corpus: Photographs) -> Path:
    """Trains both stages and returns the last checkpoint's path. Raises Stopped, after saving a checkpoint."""
    device = pick_device()
    torch.manual_seed(options.seed)
    # Resumes with the network of the run's checkpoint: --init may be gone, or hold another network by now.
    if (state := run.restore()) is None:
        net, encoder = build_net(options)
    else:
        with run.restoring():
            before = net_of(state)
            net, encoder = before.net, before.features
    net.encoder.requires_grad_(True)  # except its first blocks
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

    end = options.steps + options.refine_steps
    for step in run.steps(first, end, save=checkpoint, every_minutes=options.checkpoint_minutes):
        gray, truth = sample_batch(images, options, rng, device, net)
        stats = {"l1": 0.0, "critic_loss": 0.0, "generator_loss": 0.0}

        # --- first stage: regression, which learns average colours ---
        if step < options.steps:
            net.train()
            for group in adam.param_groups:
                group["lr"] = group["rate"] * warm_up_cosine((step + 1) / options.steps, 0.1)
            with autocast(device, True):
                predicted = net(gray, 1)
            l1 = F.l1_loss(predicted.float(), truth)
            adam.zero_grad()
            l1.backward()
            adam.step()
            stats["l1"] = l1.item()
            if step + 1 == end:  # without a second stage, the first is served as both
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

            # The critic is updated first, on the same batch, with the hinge loss (Lim and Ye 2017).
            with autocast(device, True):
                real = critic(torch.cat([condition, truth], 1)).float()
                fake = critic(torch.cat([condition, predicted.detach().float()], 1)).float()
            critic_loss = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
            critic_adam.zero_grad()
            critic_loss.backward()
            critic_adam.step()

            with autocast(device, True):
                generator_loss = -critic(torch.cat([condition, predicted.float()], 1)).float().mean()
            l1 = F.l1_loss(predicted.float(), truth)
            refine_adam.zero_grad()
            (l1 + options.critic_weight * generator_loss).backward()
            refine_adam.step()
            stats = {"l1": l1.item(), "critic_loss": critic_loss.item(), "generator_loss": generator_loss.item()}

        # --- logging ---
        line = ""
        if (step + 1) % 50 == 0 or step + 1 == end:
            line = " ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in stats.items())
        run.record(step, line, **stats)
        if (step + 1) % options.sample_every == 0 or step + 1 == end:
            save_samples(net, corpus, run.path / "samples" / f"{step + 1:06d}.png")

    rows, name = run.stats(), run.path.name
    of_l1 = [{key: row[key] for key in ("step", "l1")} for row in rows]
    plots.save_convergence(of_l1, run.path / "convergence.png", title=name)
    if options.refine_steps:
        refined = [row for row in rows if row["step"] >= options.steps]
        plots.save_convergence(refined, run.path / "critic.png", title=f"{name}: second stage")
    return run.last


def sample_batch(
    images: Tensor, options: Options, rng: torch.Generator, device: torch.device, net: Colorizer
) -> tuple[Tensor, Tensor]:
    """Gray (N, 1, S, S) in [0, 1], and a decoder's ground truth, (N, C, S, S) or half that size.

    Crops that are not square are squeezed to a square, as such pictures are in serving.
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
    """The initial network, and the name of its encoder's pretrained weights."""
    if options.init:
        before = restore_net(Path(options.init))
        return before.net, before.features
    encoder = Encoder(pretrained(options.features))
    net = Colorizer(encoder, options.widths, color=options.color, whole=options.whole, size=options.size)
    return net, options.features


def pretrained(name: str) -> features.Vgg | resnet.ResNet18:
    """Loads a pretrained encoder by name, or from a file of either kind. Raises BadInput as their loaders do."""
    if name == resnet.NAME or (Path(name).is_file() and "layer1.0.conv1.weight" in features.read(Path(name))):
        return resnet.load(name)
    return features.load(name)


@torch.no_grad()
def save_samples(net: Colorizer, corpus: Photographs, path: Path, *, count: int = 8) -> None:
    """Saves a sheet of the same held-out pictures each time: gray, first stage, second stage, ground truth."""
    eager = Served(net).to(next(net.parameters()).device)
    plots.save_grid(measures.side_by_side(eager, corpus.held_out[:count]), path, columns=8)
    net.train()


def load_net(checkpoint: Path) -> Served:
    """Loads a checkpoint's network, as it is served. Raises BadInput if it holds another network."""
    return restore_net(checkpoint).packed()


def restore_net(checkpoint: Path) -> Served:
    """The same, with its norms, to continue training."""
    state = load_checkpoint(checkpoint)
    try:
        return net_of(state)
    except (KeyError, TypeError, RuntimeError) as error:
        raise BadInput(f"checkpoint {checkpoint}: not colorizer's; `training.run colorizer` writes those") from error


def net_of(state: dict[str, Any]) -> Served:
    """The same, from the contents of a checkpoint."""
    encoder = Encoder(features.Vgg(*state["vgg"]) if state["vgg"] else resnet.ResNet18())
    net = Colorizer(encoder, **state["network"])
    net.load_state_dict(state["net"])
    return Served(net, features=state["features"])


def served(net: Served) -> Served:
    """What is exported: uint8 gray and stage in, uint8 picture out."""
    return net


def backbone(net: Served) -> dict[str, str]:
    """The name of its encoder's pretrained weights, for the card."""
    return {"name": net.features}


@torch.no_grad()
def golden(net: Served, corpus: Photographs) -> dict[str, np.ndarray]:
    """The golden batch: drawn pictures in gray, both stages and a mixture, and the eager model's answers.

    Drawn, because the batch is published and there may be no right to publish the photographs.
    """
    gray = computer_art.CORPORA["hommage_klee"](4, seed=0)[:, :61, :83, :1].copy()  # sides that are not round numbers
    stage = np.array([[1], [2], [1.5], [2]], np.float32)
    image = net(torch.from_numpy(gray), torch.from_numpy(stage)).numpy()
    return {"gray": gray, "stage": stage, "image": image}


def quantization(_net: Served, corpus: Photographs) -> Quantization:
    """Quantizes every convolution but those that convert between colour spaces, which are not part of the network."""
    grays = [measures.gray_levels(corpus.images[k]) for k in spread(len(corpus.images))]
    return Quantization(inputs={"gray": grays, "stage": [np.array([2], np.float32)] * len(grays)}, floats=("/Conv",))


def evaluate(net: Served, corpus: Photographs, *, out: Path) -> dict[str, float]:
    """Metrics on held-out photographs; writes colorized.png (gray, both stages, ground truth) into `out`."""
    return measures.evaluate(net, corpus.held_out, corpus.images, out=out)
