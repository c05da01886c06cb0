"""Train the backbone of the perceptual losses. Run: python -m training.run features --dry-run

VGG-16 at half width learns to classify photographs; batch norm is folded away at the end. Small pictures first, larger
ones later: textures are learned cheaply, and the rest of the time goes to objects.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.data import natural
from training.data.natural import Natural
from training.devices import autocast, check_seed, dropout_state, pick_device, restore_dropout
from training.errors import BadInput
from training.models.features.net import Vgg, VggClassifier, gram, random_weights
from training.options import at_least, below_one, positive
from training.rundir import RunDir, load_checkpoint
from training.schedules import warm_up_cosine


@dataclass(frozen=True, kw_only=True)
class Options:
    """Defaults are the run that ships. `batch` is in pictures; one step is one batch."""

    corpus: str = ""
    """folder with one folder of pictures for each class; left out: Imagenette, fetched into $ATELIER_DATA once"""
    pictures: int = 0
    """maximum number of pictures to take; 0 takes all"""
    seed: int = 0
    """random seed of the initial weights, the order and the augmentation"""
    epochs: int = 20
    """training epochs"""
    batch: int = 64
    """pictures per batch"""
    lr: float = 3e-3
    """AdamW learning rate at its highest"""
    weight_decay: float = 0.05
    """weight decay of AdamW"""
    warm_up: float = 0.15
    """share of the steps in which the learning rate rises; then it falls to zero along a cosine"""
    label_smoothing: float = 0.1
    """label smoothing of the cross-entropy"""
    first_size: int = 64
    """side of the pictures in the first epoch, in pixels"""
    last_size: int = 112
    """side of the pictures in the last third of the epochs, in pixels; in memory pictures have the larger of both
    sizes, 128 at least"""
    checkpoint_minutes: float = 5.0
    """minutes between two checkpoints"""

    def __post_init__(self) -> None:
        check_seed(self.seed, self.seed + self.epochs)  # each epoch's order has its own seed
        at_least(self, pictures=0, epochs=1, batch=2, first_size=32, last_size=32)
        positive(self, "lr", "checkpoint_minutes")
        below_one(self, "weight_decay", "warm_up", "label_smoothing")


PRESETS = {
    "default": Options(),
    # Takes seconds on a CPU: a smoke test, whose features need not be useful.
    "tiny": Options(pictures=64, epochs=1, batch=16, first_size=32, last_size=32),
}


def load_corpus(options: Options) -> Natural:
    # Crops larger than their source would add no detail; 128 is the default's 112 with some margin.
    size = max(128, options.first_size, options.last_size)
    return natural.load(options.corpus, size=size, pictures=options.pictures)


def train(options: Options, run: RunDir, corpus: Natural) -> Path:
    """Trains for options.epochs and returns the last checkpoint. If stopped, saves one and raises Stopped."""
    device = pick_device()
    torch.manual_seed(options.seed)
    net = VggClassifier(len(corpus.classes)).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    adam = torch.optim.AdamW(net.parameters(), options.lr, weight_decay=options.weight_decay, fused=True)
    images, labels = torch.from_numpy(corpus.images), torch.from_numpy(corpus.labels)
    batches = max(1, len(images) // options.batch)  # per epoch; the shuffled remainder is dropped
    steps = options.epochs * batches

    # Draws everything random on the CPU, except initial weights, dropout and the order of the pictures.
    rng = torch.Generator().manual_seed(options.seed)
    first = 0
    if (state := run.restore()) is not None:
        with run.restoring():
            net.load_state_dict(state["net"])
            adam.load_state_dict(state["adam"])
            rng.set_state(state["luck"])
            restore_dropout(state, device)
            first = state["step"]

    def checkpoint(step: int) -> None:
        run.save({
            "net": net.state_dict(), "adam": adam.state_dict(), "luck": rng.get_state(),
            **dropout_state(device), "step": step, "classes": list(corpus.classes),
        })  # fmt: skip

    for step in run.steps(first, steps, save=checkpoint, every_minutes=options.checkpoint_minutes):
        epoch, batch = divmod(step, batches)
        if batch == 0 or step == first:
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(options.seed + epoch))
        chosen = order[batch * options.batch : (batch + 1) * options.batch]
        for group in adam.param_groups:
            group["lr"] = options.lr * warm_up_cosine((step + 1) / steps, options.warm_up)

        # --- one step ---
        net.train()
        picture, label = images[chosen].permute(0, 3, 1, 2).to(device), labels[chosen].to(device)
        picture = augment(picture.float() / 255, size_at(epoch, options), rng)
        with autocast(device, True):
            logits = net(picture.contiguous(memory_format=torch.channels_last)).float()
        loss = F.cross_entropy(logits, label, label_smoothing=options.label_smoothing)
        adam.zero_grad()
        loss.backward()
        adam.step()

        # --- log, with the held-out accuracy once per epoch ---
        stats = {"loss": loss.item(), "accuracy": (logits.argmax(1) == label).float().mean().item()}
        line = ""
        if batch == batches - 1:
            stats["held_out_accuracy"] = accuracy(net, corpus, device)
            line = f"epoch {epoch + 1:3d} " + " ".join(f"{name.replace('_', ' ')} {v:.3f}" for name, v in stats.items())
        run.record(step, line, **stats)

    return run.last


def size_at(epoch: int, options: Options) -> int:
    """The side of an epoch's pictures in pixels: in steps of 16, the largest for the last third."""
    done = min(1.0, epoch / max(1, options.epochs - 1) * 1.5)
    if done == 1:
        return options.last_size
    return options.first_size + round((options.last_size - options.first_size) * done / 16) * 16


def augment(picture: Tensor, size: int, rng: torch.Generator) -> Tensor:
    """(N, 3, H, W) -> (N, 3, size, size): a random resized crop, randomly mirrored, with random lighting."""
    count, device = len(picture), picture.device

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=rng)

    area, stretch = uniform(0.25, 1.0).sqrt(), uniform(math.log(3 / 4), math.log(4 / 3)).div(2).exp()
    wide, high = (area * stretch).clamp(max=1), (area / stretch).clamp(max=1)
    mirrored = 1 - 2 * (torch.rand(count, generator=rng) < 0.5).float()
    zero = torch.zeros(count)
    rows = [
        torch.stack([wide * mirrored, zero, uniform(-1, 1) * (1 - wide)], 1),
        torch.stack([zero, high, uniform(-1, 1) * (1 - high)], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), [count, 3, size, size], align_corners=False).to(device)
    picture = F.grid_sample(picture, grid, padding_mode="border", align_corners=False)
    # Styles differ in their colours, so the network must not learn to ignore these: brightness varies, hue does not.
    brightness, contrast, saturation = (uniform(0.7, 1.3).to(device)[:, None, None, None] for _ in range(3))
    gray = picture.mean(1, keepdim=True)
    picture = gray + (picture - gray) * saturation
    middle = picture.mean((1, 2, 3), keepdim=True)
    return ((middle + (picture - middle) * contrast) * brightness).clamp(0, 1)


@torch.no_grad()
def accuracy(net: nn.Module, corpus: Natural, device: torch.device) -> float:
    """Accuracy on the held-out set."""
    net.eval()
    pictures = torch.from_numpy(corpus.held_out).permute(0, 3, 1, 2)
    with autocast(device, True):
        predicted = torch.cat([net(part.to(device).float() / 255).argmax(1).cpu() for part in pictures.split(100)])
    return (predicted == torch.from_numpy(corpus.held_out_labels)).float().mean().item()


def load_net(checkpoint: Path) -> VggClassifier:
    """The network of a checkpoint. Raises BadInput if it holds another one."""
    state = load_checkpoint(checkpoint)
    try:
        net = VggClassifier(len(state["classes"]))
        net.load_state_dict(state["net"])
    except (KeyError, RuntimeError) as error:
        raise BadInput(f"checkpoint {checkpoint}: not the backbone's; `training.run features` writes those") from error
    return net.eval()


def weights(net: VggClassifier) -> dict[str, Tensor]:
    """The weights to ship: the folded convolutions in torchvision's format, in half precision."""
    return {key: value.half() for key, value in net.folded().state_dict().items()}


def evaluate(net: VggClassifier, corpus: Natural, *, out: Path) -> dict[str, float]:
    """Metrics on the held-out set, beside an untrained network's."""
    held_out = torch.from_numpy(corpus.held_out).permute(0, 3, 1, 2)
    return {
        "held_out_accuracy": accuracy(net, corpus, torch.device("cpu")),
        "halves_matched": halves_matched(net.folded(), held_out),
        "halves_matched_by_random": halves_matched(random_weights(seed=0), held_out),
    }


@torch.no_grad()
def halves_matched(vgg: Vgg, pictures: Tensor) -> float:
    """How often a picture's left half is nearer to its own right half than to any other's, by Gram matrices.

    Pictures uint8 (N, 3, H, W). Tells whether the network captures style, which two parts of a picture share.
    """
    layers = ("conv2_1", "conv3_1", "conv4_1")
    distances = torch.zeros(len(pictures), len(pictures))
    activations = [vgg(part.float() / 255, layers) for part in pictures.split(50)]
    for name in layers:
        middle = activations[0][name].shape[3] // 2
        left, right = (
            F.normalize(torch.cat([gram(part[name][..., half]).flatten(1) for part in activations]))
            for half in (slice(None, middle), slice(middle, None))
        )
        distances += 1 - left @ right.T
    return (distances.argmin(1) == torch.arange(len(pictures))).float().mean().item()
