"""Train the classifier of garments. Run: python -m training.run classifier --dry-run

On Fashion-MNIST (Xiao et al. 2017). Presets `one-conv` and `four-conv` are the source's networks and options; the
default is what ships.
"""

from __future__ import annotations

import math
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from training.data import fashion_mnist
from training.data.fashion_mnist import Garments, Split
from training.devices import autocast, check_seed, dropout_state, pick_device, restore_dropout
from training.errors import BadInput
from training.models.classifier import evaluate as measures
from training.models.classifier.muon import Muon
from training.models.classifier.net import NETWORKS, Cascade, Ensemble, Served, folded
from training.models.classifier.spec import SIZE
from training.options import at_least, below_one, not_negative, one_of, positive
from training.quantize import Quantization
from training.rundir import RunDir, Stopped, load_checkpoint
from training.schedules import warm_up_cosine


@dataclass(frozen=True, kw_only=True)
class Options:
    """Defaults are the run that ships. `batch` is in pictures; one step is one batch."""

    corpus: str = ""
    """folder with Fashion-MNIST, as IDX or as CSV; left out: fetched into $ATELIER_DATA/fashion-mnist once"""
    pictures: int = 0
    """maximum number of pictures to take from each of the two sets, training and test; 0 takes all"""
    validation: float = 0.05
    """share of the training pictures that are held out; the other options were chosen with 0.2, the source's"""
    part_anew: bool = False
    """merge the training and the test set and draw another test set, as Kaggle did: for figures to compare with its"""
    seed: int = 0
    """random seed of the weights, the order and the augmentation: net k has seed * nets + k. The validation split stays
    the same"""
    network: str = "residual"
    """network: residual, one-conv or four-conv"""
    nets: int = 3
    """number of nets trained side by side, each from a seed of its own; they answer together"""
    epochs: int = 40
    """training epochs of each net"""
    batch: int = 128
    """pictures per batch"""
    lr: float = 3e-3
    """AdamW learning rate at its highest"""
    muon_lr: float = 6e-3
    """Muon learning rate at its highest, for all convolutions but the first; 0 leaves them to AdamW"""
    weight_decay: float = 0.05
    """weight decay of AdamW and Muon; biases and norms have none"""
    warm_up: float = 0.15
    """share of all steps in which the learning rates rise; then they fall to zero along a cosine. 0 keeps them
    constant"""
    label_smoothing: float = 0.0
    """label smoothing of the cross-entropy; not tried with this net: with 0.1 one before it was as often right and
    worse calibrated, by 0.013, not 0.005"""
    crop: int = 2
    """maximum shift by whole pixels, so that nothing is blurred"""
    rotate_deg: float = 0.0
    """maximum rotation in degrees, either way"""
    shift: float = 0.0
    """maximum shift as a share of the side, by any fraction of a pixel"""
    shear_deg: float = 0.0
    """maximum shear in degrees, either way"""
    zoom: float = 0.0
    """maximum zoom: by a factor of 1 +- that"""
    erase: float = 0.5
    """share of the pictures that lose a rectangle (Zhong et al. 2020)"""
    bf16: bool = True
    """bfloat16 autocast and channels-last memory; off: float32, which the convolutions of NVIDIA's GPUs from Ampere on
    round to TF32"""
    checkpoint_minutes: float = 5.0
    """minutes between two checkpoints"""

    def __post_init__(self) -> None:
        # Net k's order in an epoch is seeded with the sum of its seed and the epoch's number.
        check_seed(self.seed, self.seed * self.nets, (self.seed + 1) * self.nets + self.epochs)
        at_least(self, pictures=0, nets=1, epochs=1, batch=2, crop=0)
        one_of(self, network=NETWORKS)
        positive(self, "lr", "checkpoint_minutes")
        not_negative(self, "muon_lr", "weight_decay", "rotate_deg", "shear_deg")
        below_one(self, "warm_up", "label_smoothing", "shift", "zoom", "erase")
        if not 0 < self.validation < 1:
            raise BadInput(f"--validation: {self.validation} must lie between 0 and 1, as some pictures are held out")


# The source's options: Adam, no augmentation. The source doesn't give its learning rate; these were chosen on the
# validation set. Keras's default is --lr 1e-3 --warm-up 0.
ONE_CONV = Options(
    network="one-conv", validation=0.2, nets=1, epochs=10, batch=256, lr=8e-3, muon_lr=0.0, weight_decay=0.0,
    warm_up=0.3, label_smoothing=0.0, crop=0, erase=0.0,
)  # fmt: skip
FOUR_CONV = replace(ONE_CONV, network="four-conv", lr=2e-2)
# The source's augmentation. Keras's shear is in degrees, so 0.3 is next to nothing.
AUGMENTED: dict[str, Any] = {"rotate_deg": 8.0, "shift": 0.08, "shear_deg": 0.3, "zoom": 0.08}

PRESETS = {
    "default": Options(),
    "one-conv": ONE_CONV,
    "one-conv-augmented": replace(ONE_CONV, epochs=50, lr=2e-3, **AUGMENTED),
    "four-conv": FOUR_CONV,
    "four-conv-augmented": replace(FOUR_CONV, epochs=50, **AUGMENTED),
    # Takes seconds on a CPU: a smoke test, whose answers need not be right.
    "tiny": Options(pictures=640, nets=2, epochs=1, batch=64),
}


def load_corpus(options: Options) -> Garments:
    return fashion_mnist.load(
        options.corpus, pictures=options.pictures or None, validation=options.validation, part_anew=options.part_anew
    )


class Learner:
    """One net with its optimizers and RNG state, started from its own seed."""

    def __init__(self, options: Options, number: int, device: torch.device) -> None:
        self.options, self.seed, self.device = options, options.seed * options.nets + number, device
        torch.manual_seed(self.seed)
        self.net = NETWORKS[options.network]().to(device)
        if options.bf16:
            self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        self.optimizers = make_optimizers(self.net, options)
        # Draws everything random but initial weights, order and dropout, on the CPU; dropout uses torch's generator.
        self.rng = torch.Generator().manual_seed(self.seed)
        self.order: Tensor | None = None  # of the pictures, in this epoch

    def state(self) -> dict[str, Any]:
        return {
            "net": self.net.state_dict(), **{name: each.state_dict() for name, each in self.optimizers.items()},
            "luck": self.rng.get_state(),
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state[name])
        self.rng.set_state(state["luck"])

    def learn(self, step: int, images: Tensor, labels: Tensor, validation: Split) -> dict[str, float]:
        """Trains on the batch of that step. Returns the batch's loss and accuracy and, at an epoch's end, those of the
        validation set."""
        options, batches = self.options, batches_of(self.options, images)
        epoch, batch = divmod(step, batches)
        if batch == 0 or self.order is None:
            # Net k gets the order that net k + 1 had in the previous epoch; their weights and augmentation differ.
            self.order = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.seed + epoch))
        chosen = self.order[batch * options.batch : (batch + 1) * options.batch].to(self.device)
        for group in [group for optimizer in self.optimizers.values() for group in optimizer.param_groups]:
            group["lr"] = group["initial_lr"] * lr_multiplier(step, options.epochs * batches, options.warm_up)

        self.net.train()
        picture, label = augment(images[chosen].float() / 255, options, self.rng), labels[chosen]
        if options.bf16:
            picture = picture.contiguous(memory_format=torch.channels_last)
        with autocast(self.device, options.bf16):
            logits = self.net(picture)
        logits = logits.float()
        loss = F.cross_entropy(logits, label, label_smoothing=options.label_smoothing)
        self.net.zero_grad()
        loss.backward()
        for optimizer in self.optimizers.values():
            optimizer.step()

        # The loss without label smoothing, comparable with the validation loss.
        stats = {
            "loss": F.cross_entropy(logits, label).item(),
            "accuracy": (logits.argmax(1) == label).float().mean().item(),
        }
        if batch == batches - 1:
            measured = loss_and_accuracy(predict_logits(self.net, validation), validation)
            stats |= {f"validation_{name}": value for name, value in measured.items()}
        return stats


def batches_of(options: Options, images: Tensor) -> int:
    """Batches per epoch. The remainder is dropped; the next epoch is shuffled anew."""
    return max(1, len(images) // options.batch)


def side_by_side(learners: list[Learner]) -> ThreadPoolExecutor:
    """A thread pool that shares a CPU's cores: two nets with a core each train 1.3 times as fast as one after another
    with both. torch releases the GIL wherever it computes."""
    # One thread on a GPU, which serializes work anyway, and with dropout, whose one generator nets must use in turn.
    draws = any(isinstance(module, nn.Dropout) for module in learners[0].net.modules())
    cores = torch.get_num_threads()
    count = 1 if draws or learners[0].device.type == "cuda" else min(len(learners), cores)
    return ThreadPoolExecutor(count, "net", torch.set_num_threads, (cores // count,))


def train(options: Options, run: RunDir, corpus: Garments) -> Path:
    """Trains options.nets side by side and returns the last checkpoint. If stopped, saves one and raises Stopped.

    Step k of the run is a step of net k % options.nets, so that each net does its steps in order and all keep pace.
    """
    device = pick_device()
    images, labels = on_device(corpus.train, device)
    batches = batches_of(options, images)
    steps = options.nets * options.epochs * batches

    learners, first = [Learner(options, number, device) for number in range(options.nets)], 0
    if (state := run.restore()) is not None:
        with run.restoring():
            first = state["step"]
            restore_dropout(state, device)
            for learner, each in zip(learners, state["learners"], strict=True):
                learner.restore(each)

    def checkpoint(step: int, temperature: float) -> None:
        run.save({
            "learners": [learner.state() for learner in learners], **dropout_state(device), "step": step,
            "temperature": temperature, "network": options.network,
        })  # fmt: skip

    with side_by_side(learners) as threads:

        def begin(step: int) -> Future[dict[str, float]]:
            learner = learners[step % options.nets]
            return threads.submit(learner.learn, step // options.nets, images, labels, corpus.validation)

        last_saved = time.monotonic()
        begun = deque(begin(step) for step in range(first, min(first + options.nets, steps)))
        saves = False
        for step in run.steps(first, steps):
            stats = begun.popleft().result()
            of_net, number = divmod(step, options.nets)
            line = ""
            if "validation_loss" in stats:
                line = f"net {number + 1} epoch {of_net // batches + 1:3d} loss {stats['loss']:.3f} " + " ".join(
                    f"{name.replace('_', ' ')} {value:.4f}" for name, value in stats.items() if name != "loss"
                )
            run.record(step, line, **stats)

            # A checkpoint holds all nets after the same number of steps: none begins its next before it is written.
            # There is one at the end, too, so that a run stopped during the search for the temperature loses no step.
            if number == 0 or step + options.nets >= steps:
                due = time.monotonic() - last_saved > 60 * options.checkpoint_minutes
                saves = run.terminated or due or step + 1 == steps
            if not saves and step + options.nets < steps:
                begun.append(begin(step + options.nets))
            if saves and not begun:
                checkpoint(step + 1, 1.0)
                if run.terminated:
                    raise Stopped
                last_saved = time.monotonic()
                begun.extend(begin(step) for step in range(step + 1, min(step + 1 + options.nets, steps)))
                saves = False

    ensemble = Ensemble([learner.net.state_dict() for learner in learners], options.network)
    logits = predict_logits(ensemble, corpus.validation)
    checkpoint(steps, best_temperature(logits, corpus.validation.labels))
    measures.save_curves(
        by_epoch(run.stats(), batches, options.nets), run.path / "convergence.png", title=run.path.name
    )
    return run.last


def on_device(split: Split, device: torch.device) -> tuple[Tensor, Tensor]:
    """The images, uint8 (N, 1, 28, 28), and the labels, int64 (N,)."""
    return torch.from_numpy(split.images)[:, None].to(device), torch.from_numpy(split.labels).long().to(device)


def make_optimizers(net: nn.Module, options: Options) -> dict[str, torch.optim.Optimizer]:
    """AdamW as `adam`, and, unless muon_lr is 0, Muon as `muon` for all convolutions but the first."""
    kernels = [p for p in net.parameters() if p.ndim == 4 and p.shape[1] > 1] if options.muon_lr else []
    known = set(map(id, kernels))
    rest = [p for p in net.parameters() if id(p) not in known]
    adam = torch.optim.AdamW(
        [
            {"params": [p for p in rest if p.ndim > 1], "weight_decay": options.weight_decay},
            {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},  # biases and norms
        ],
        options.lr, eps=1e-7, fused=True,
    )  # fmt: skip
    optimizers: dict[str, torch.optim.Optimizer] = {"adam": adam}
    if kernels:
        optimizers["muon"] = Muon(kernels, lr=options.muon_lr, weight_decay=options.weight_decay)
    for group in [group for optimizer in optimizers.values() for group in optimizer.param_groups]:
        group["initial_lr"] = group["lr"]  # torch's schedulers use this key
    return optimizers


def lr_multiplier(step: int, steps: int, warm_up: float) -> float:
    """Multiplier of the learning rates at a step: linear warm-up, then half a cosine to zero; 1 without warm-up."""
    return warm_up_cosine((step + 1) / steps, warm_up) if warm_up else 1.0


def augment(picture: Tensor, options: Options, rng: torch.Generator) -> Tensor:
    """Float (N, 1, 28, 28): affine maps, shifts and random erasing, for the whole batch at once, on its device."""
    count, device = len(picture), picture.device

    def uniform(width: float) -> Tensor:
        """(N,), in [-width, width]"""
        return (2 * torch.rand(count, generator=rng) - 1) * width

    if options.rotate_deg or options.shift or options.shear_deg or options.zoom:
        # The rows of the affine matrix that maps output to input coordinates, in units of half a side.
        angle, shear = uniform(math.radians(options.rotate_deg)), uniform(math.radians(options.shear_deg))
        wide, high = 1 + uniform(options.zoom), 1 + uniform(options.zoom)
        across, down = uniform(2 * options.shift), uniform(2 * options.shift)
        rows = [
            torch.stack([wide * angle.cos(), -high * (angle + shear).sin(), across], 1),
            torch.stack([wide * angle.sin(), high * (angle + shear).cos(), down], 1),
        ]
        grid = F.affine_grid(torch.stack(rows, 1).to(device), list(picture.shape), align_corners=False)
        picture = F.grid_sample(picture, grid, padding_mode="border", align_corners=False)
    if options.crop:
        # Row k of the result is row k + shift of the picture, columns likewise; edges are replicated.
        at = torch.arange(SIZE) + torch.randint(-options.crop, options.crop + 1, (2, count, 1), generator=rng)
        rows, columns = at.clamp(0, SIZE - 1).to(device)
        picture = picture[torch.arange(count, device=device)[:, None, None], 0, rows[:, :, None], columns[:, None, :]]
        picture = picture[:, None]
    if options.erase:
        # A rectangle with sides of 6 to 14 pixels, at a random place, filled with one random gray.
        side = torch.randint(6, 15, (count, 2), generator=rng)
        corner = (torch.rand(count, 2, generator=rng) * (SIZE - side + 1)).long()
        at = torch.arange(SIZE)
        inside = [(at >= corner[:, [k]]) & (at < (corner + side)[:, [k]]) for k in (0, 1)]
        erased = torch.rand(count, generator=rng) < options.erase
        hole = (inside[0][:, :, None] & inside[1][:, None, :] & erased[:, None, None])[:, None]
        gray = torch.rand(count, 1, 1, 1, generator=rng)
        picture = torch.where(hole.to(device), gray.to(device), picture)
    return picture


@torch.no_grad()
def predict_logits(net: nn.Module, split: Split, *, batch: int = 512) -> Tensor:
    """Logits (N, 10) of a split, without bfloat16 autocast: in float32 on a CPU."""
    device = next(net.parameters()).device
    was_training = net.training
    net.eval()
    images, _ = on_device(split, device)
    logits = torch.cat([net(part.float() / 255).cpu() for part in images.split(batch)])
    net.train(was_training)
    return logits


def loss_and_accuracy(logits: Tensor, split: Split) -> dict[str, float]:
    labels = torch.from_numpy(split.labels).long()
    right = (logits.argmax(1) == labels).float().mean()
    return {"loss": F.cross_entropy(logits, labels).item(), "accuracy": right.item()}


def best_temperature(logits: Tensor, labels: np.ndarray) -> float:
    """The temperature that maximizes the likelihood of the labels (Guo et al. 2017)."""
    truth = torch.from_numpy(labels).long()
    found: Any = minimize_scalar(
        lambda log: F.cross_entropy(logits / math.exp(log), truth).item(), bounds=(-2.5, 2.5), method="bounded"
    )
    return math.exp(found.x)


def by_epoch(stats: list[dict[str, float]], batches: int, nets: int) -> list[dict[str, float]]:
    """Aggregates rows of steps into rows of epochs, net after net: means of the training figures, and the validation
    figures. Those lost in a crash are NaN."""
    of_step = {int(row["step"]): row for row in stats}
    rows = []
    for number in range(nets):
        for epoch, start in enumerate(range(number, max(of_step, default=0) + 1, nets * batches), 1):
            steps = range(start, start + nets * batches, nets)
            part = [of_step[step] for step in steps if step in of_step] or [{}]
            row: dict[str, float] = {"epoch": epoch}
            for name in ("loss", "accuracy"):
                row[f"train_{name}"] = float(np.mean([each.get(name, math.nan) for each in part]))
                row[f"validation_{name}"] = part[-1].get(f"validation_{name}", math.nan)
            rows.append(row)
    return rows


def served(net: Served) -> Served:
    """The module to export: uint8 picture in, probabilities out."""
    assert isinstance(net.net, Ensemble)
    return Cascade(net.net, net.temperature).eval() if net.net.shifts else net


def load_net(checkpoint: Path) -> Served:
    """The network of a checkpoint with its temperature, ready to serve. Raises BadInput if it holds another network."""
    state = load_checkpoint(checkpoint)
    # In checkpoints of style and colorizer it is a dictionary, which is not hashable.
    if not isinstance(state.get("network"), str) or state["network"] not in NETWORKS or "temperature" not in state:
        raise BadInput(f"checkpoint {checkpoint}: not the classifier's; `training.run classifier` writes those")
    try:
        net = Ensemble([each["net"] for each in state["learners"]], state["network"])
    except (KeyError, RuntimeError) as error:
        raise BadInput(
            f"checkpoint {checkpoint}: made by another version of the {state['network']} network; train anew"
        ) from error
    return Served(folded(net), state["temperature"]).eval()


@torch.no_grad()
def predict_proba(net: Served, images: np.ndarray, *, batch: int = 512) -> np.ndarray:
    """Images uint8 (N, 28, 28) -> probabilities float32 (N, 10)."""
    return torch.cat([net(part) for part in torch.from_numpy(images)[..., None].split(batch)]).numpy()


def evaluate(net: Served, corpus: Garments, *, out: Path) -> dict[str, float]:
    """Metrics of all three sets; writes confusion.png, mistakes.png and calibration.png of the test set into `out`.

    The test set is used here and nowhere else.
    """
    probabilities = predict_proba(net, corpus.test.images)
    measures.report(corpus.test.images, corpus.test.labels, probabilities, out)
    test = measures.measure(probabilities, corpus.test.labels)
    validation = measures.measure(predict_proba(net, corpus.validation.images), corpus.validation.labels)
    return {
        **{f"test_{name}": test.pop(name) for name in ("accuracy", "loss", "ece")},
        **{f"validation_{name}": validation[name] for name in ("accuracy", "loss", "ece")},
        # Its gap to the validation accuracy shows overfitting.
        "train_accuracy": measures.measure(predict_proba(net, corpus.train.images), corpus.train.labels)["accuracy"],
        **{f"test_{name}": value for name, value in test.items()},  # class by class
    }


@torch.no_grad()
def golden(net: Served, corpus: Garments) -> dict[str, np.ndarray]:
    """The first validation pictures, except those so close to a Cascade's thresholds that rounding could change their
    path through it, and the eager model's answers, named as on the wire."""
    images = torch.from_numpy(corpus.validation.images[:128, ..., None])
    cascade = served(net)
    if isinstance(cascade, Cascade):
        images = images[cascade.margins(images) > 0.02]
    images = images[:64]
    return {"image": images.numpy(), "probabilities": net(images).numpy()}


def quantization(_net: Served, corpus: Garments) -> Quantization:
    """Also quantizes the operators between convolutions, so that all is integers from the first to the last."""
    return Quantization(
        inputs={"image": list(corpus.train.images[:2048, ..., None])}, operators=("Conv", "Relu", "Add", "MaxPool")
    )
