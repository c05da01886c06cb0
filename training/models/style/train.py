"""Train one network for many painters' styles. Run: python -m training.run style --styles DIR --dry-run

Johnson et al. 2016, with a norm for each style (Dumoulin et al. 2017): a frozen backbone measures how far a painted
photograph is from the photograph in content, and from the painting in style.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from training import distributed, plots
from training.data import computer_art, corpus, natural, photos
from training.devices import autocast, check_seed, pick_device
from training.errors import BadInput
from training.models.features import net as features
from training.models.features.net import Vgg, content_loss, gram, relative_error, total_variation
from training.models.style import evaluate as measures
from training.models.style.net import Served, StyleNet
from training.options import at_least, not_negative, positive
from training.quantize import Quantization, spread
from training.rundir import RunDir, load_checkpoint


@dataclass(frozen=True, kw_only=True)
class Options:
    """`batch` is in photographs; one step is one batch. What ships took more than one run: its card lists them."""

    styles: str = ""
    """folder of paintings, or one painting; each style is named after its file"""
    add_style: str = ""
    """painting to add as a style to the network of --init: only its own norms are trained"""
    init: str = ""
    """checkpoint to start from, which brings its network along; --widths and --outer have to be as they were"""
    content: str = ""
    """folder or zip of photographs; left out: Imagenette, fetched into $ATELIER_DATA once"""
    photos: int = 0
    """maximum number of photographs to take; 0 takes all"""
    seed: int = 0
    """random seed of the initial weights and the batches"""
    features: str = features.OWN
    """backbone of the content and style losses: vgg16-half, vgg16, vgg19, random, or a file in torchvision's form"""
    content_layers: tuple[str, ...] = ("conv2_2",)
    """backbone layers of the content loss"""
    style_layers: tuple[str, ...] = ("conv1_1", "conv2_1", "conv3_1", "conv4_1")
    """backbone layers of the style loss, which compares their Gram matrices"""
    content_weight: float = 1.0
    """weight of the content loss; by default the painter's, as --style-weight and --tv-weight are"""
    style_weight: float = 5.0
    """weight of the style loss"""
    tv_weight: float = 10.0
    """weight of the total variation loss"""
    widths: tuple[int, int, int] = (24, 48, 96)
    """channels at full, half and quarter resolution"""
    outer: int = 3
    """kernel size of the last layer, an odd number, and of the first one if it is larger than 5"""
    size: int = 128
    """side of a training photograph in pixels"""
    style_size: int = 384
    """longer side of a painting in pixels; larger ones give larger strokes"""
    batch: int = 4
    """photographs per batch"""
    steps: int = 11_000
    """training steps; one step is one batch"""
    lr: float = 1e-3
    """Adam learning rate of the weights that all styles share; a style's own have three times that. It falls to a
    twentieth in the last third of the steps"""
    sample_every: int = 500
    """steps between two sheets of samples"""
    checkpoint_minutes: float = 5.0
    """minutes between two checkpoints"""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        at_least(self, photos=0, size=32, style_size=32, batch=1, steps=1, sample_every=1)
        positive(self, "lr", "checkpoint_minutes")
        not_negative(self, "content_weight", "style_weight", "tv_weight")
        if self.outer % 2 == 0 or self.outer < 1 or min(self.widths) < 1:
            raise BadInput(f"--outer: {self.outer}, --widths: {self.widths}; give an odd kernel and widths above 0")


# The paper's network, except for the norms' limit, and its loss layers. Its loss weights are not taken over: they are
# for losses that are not relative errors.
JOHNSON: dict[str, Any] = {
    "features": "vgg16", "content_layers": ("conv2_2",),
    "style_layers": ("conv1_2", "conv2_2", "conv3_3", "conv4_3"),
    "widths": (32, 64, 128), "outer": 9, "size": 256, "style_size": 256, "batch": 4, "steps": 40_000, "lr": 1e-3,
}  # fmt: skip
# A smoke test: seconds on a CPU, too few steps to paint anything.
TINY: dict[str, Any] = {
    "photos": 32, "widths": (4, 8, 8), "size": 32, "style_size": 48, "batch": 2, "steps": 4, "sample_every": 2,
    "features": features.RANDOM,
}  # fmt: skip
PRESETS = {"default": Options(), "johnson": Options(**JOHNSON), "tiny": Options(**TINY)}


@dataclass(frozen=True)
class Gallery:
    """Photographs uint8 (N, size, size, 3), some held out, and paintings uint8 (H, W, 3) by style name."""

    name: str
    images: np.ndarray
    held_out: np.ndarray
    paintings: dict[str, np.ndarray]
    sha256: str  # of the photographs and the paintings


def load_corpus(options: Options) -> Gallery:
    if bool(options.styles) == bool(options.add_style):
        raise BadInput("--styles: name a folder of paintings, or --add-style PICTURE with --init CHECKPOINT")
    if options.add_style and not options.init:
        raise BadInput("--add-style: needs --init CHECKPOINT, of the network to add it to")
    flag = "--styles" if options.styles else "--add-style"
    paintings = load_paintings(Path(options.styles or options.add_style), side=options.style_size, flag=flag)
    if options.add_style and len(paintings) > 1:
        raise BadInput(f"--add-style: {len(paintings)} paintings in {options.add_style}; name one, for its own run")
    source = Path(options.content) if options.content else natural.imagenette(flag="--content")
    images, _ = photos.load(source, count=options.photos or None, seed=13, size=options.size, flag="--content")
    if len(images) < corpus.LEAST:
        raise BadInput(f"--content: {len(images)} pictures in {source} are too few; at least {corpus.LEAST}")
    held = min(16, len(images) // 4)
    order = np.random.default_rng(13).permutation(len(images))
    return Gallery(
        f"{source.name}; paintings: {', '.join(paintings)}",
        images[np.sort(order[held:])], images[order[:held]], paintings,
        corpus.checksum_of_all([images, *paintings.values()]),
    )  # fmt: skip


def load_paintings(source: Path, *, side: int, flag: str = "--styles") -> dict[str, np.ndarray]:
    """One painting, or those of a folder, by style name, from the file's name; the longer side is `side` pixels. Raises
    BadInput, whose message begins with `flag`, for one that can't be used."""
    if not source.exists():
        raise BadInput(f"{flag}: {source} is not there; name a folder of paintings, or one")
    names = photos.find(source, flag=flag) if source.is_dir() else [source.name]
    folder = source if source.is_dir() else source.parent
    paintings = {}
    for name in names:
        try:
            with Image.open(folder / name) as picture:
                upright = photos.to_rgb(ImageOps.exif_transpose(picture), (255, 255, 255))
        except Exception as error:  # what a damaged file makes Pillow's decoders raise is open-ended
            raise BadInput(f"{flag}: {folder / name} can't be decoded ({type(error).__name__}); remove it") from error
        small = ImageOps.contain(upright, (side, side), Image.Resampling.LANCZOS)
        if min(small.size) < 16:
            raise BadInput(f"{flag}: {folder / name} is too narrow, {upright.width} x {upright.height}")
        style = style_name(Path(name).stem)
        if not style:
            raise BadInput(
                f"{flag}: {folder / name} gives its style no name; rename it, with letters from a to z in it"
            )
        if style in paintings:
            raise BadInput(f"{flag}: two paintings in {folder} are called {style}; rename one")
        paintings[style] = np.array(small)
    return paintings


def style_name(stem: str) -> str:
    """Café Terrace (1888) -> cafe-terrace-1888: a valid style name for a served model. "" if nothing is left."""
    plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def train(options: Options, run: RunDir, corpus: Gallery) -> Path:
    """Trains for options.steps and returns the last checkpoint's path. Raises Stopped, after saving a checkpoint."""
    device = pick_device()
    torch.manual_seed(options.seed)
    vgg = load_vgg(options).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    # Resumes with the network of the run's checkpoint: --init may be gone, or hold another network by now.
    if (state := run.restore()) is None:
        net, names, first_new = build_net(options, corpus)
    else:
        with run.restoring():
            before = net_of(state)
            net, names, first_new = before.net, before.names, len(before.names) - 1 if options.add_style else 0
    net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    # Adding a style leaves the others unchanged: only the norms' new rows are trained.
    per_style = [parameter for name, parameter in net.named_parameters() if name.endswith((".scale", ".shift"))]
    shared = [parameter for name, parameter in net.named_parameters() if not name.endswith((".scale", ".shift"))]
    # A higher rate per style: with S styles, a style's own parameters see one photograph in S.
    groups: list[dict[str, Any]] = [{"params": per_style, "rate": 3.0}]
    if first_new == 0:
        groups.append({"params": shared, "rate": 1.0})
    adam = torch.optim.Adam(groups, options.lr, fused=True)
    ddp_net, shard = distributed.data_parallel(net), distributed.shard(options.batch)
    images = torch.from_numpy(corpus.images)
    paintings = [corpus.paintings[name] for name in names[first_new:]]  # in the network's order, not the files'
    target_grams = grams_of(vgg, paintings, options.style_layers, device)
    layers = {*options.content_layers, *options.style_layers}

    rng = torch.Generator().manual_seed(options.seed)
    first = 0
    if state is not None:
        with run.restoring():
            adam.load_state_dict(state["adam"])
            rng.set_state(state["luck"])
            first = state["step"]

    def checkpoint(step: int) -> None:
        run.save({
            "net": net.state_dict(), "adam": adam.state_dict(), "luck": rng.get_state(), "step": step,
            "network": net.options, "names": list(names), "objective": objective(options),
        })  # fmt: skip

    for step in run.steps(first, options.steps, save=checkpoint, every_minutes=options.checkpoint_minutes):
        for group in adam.param_groups:
            decay = 1.0 if 3 * step < 2 * options.steps else 0.05 ** (3 * step / options.steps - 2)
            group["lr"] = group["rate"] * options.lr * decay

        # --- photographs, and a style for each: drawn for the whole batch, of which this worker takes its shard ---
        chosen = torch.randint(len(images), (options.batch,), generator=rng)[shard]
        style_index = torch.randint(len(paintings), (options.batch,), generator=rng)[shard].to(device)
        mirrored = (torch.rand(options.batch, generator=rng) < 0.5)[shard, None, None, None].to(device)
        photo = images[chosen].to(device).permute(0, 3, 1, 2)  # copied as bytes, converted to floats on the device
        photo = torch.where(mirrored, photo.flip(3), photo).float() / 255
        photo = photo.contiguous(memory_format=torch.channels_last)
        weights = nn.functional.one_hot(first_new + style_index, len(names)).float()

        # --- the painted batch, and its losses ---
        with autocast(device, True):
            painted = ddp_net(photo, weights)
            activations = vgg(painted, layers)
            with torch.no_grad():
                targets = vgg(photo, options.content_layers)
        activations, targets = ({name: x.float() for name, x in each.items()} for each in (activations, targets))
        content = content_loss(activations, targets).mean()
        errors = [huber_loss(gram(activations[name]), grams[style_index]) for name, grams in target_grams.items()]
        style = torch.stack(errors).sum()
        tv = total_variation(painted.float()).mean()
        style_weight = style_warm_up(step, options) * options.style_weight
        loss = options.content_weight * content + style_weight * style + options.tv_weight * tv
        adam.zero_grad()
        loss.backward()
        for parameter in per_style if first_new else ():
            assert parameter.grad is not None
            parameter.grad[:first_new] = 0
        adam.step()

        # --- logging ---
        losses = {"loss": loss, "content": content, "style": style, "tv": tv}
        stats = distributed.all_reduce_mean({name: value.item() for name, value in losses.items()})
        line = ""
        if (step + 1) % 50 == 0 or step + 1 == options.steps:
            line = " ".join(f"{name} {value:.4f}" for name, value in stats.items())
        run.record(step, line, **stats)
        if (step + 1) % options.sample_every == 0 or step + 1 == options.steps:
            save_samples(net, names, corpus, run.path / "samples" / f"{step + 1:06d}.png")

    plots.save_convergence(run.stats(), run.path / "convergence.png", title=run.path.name)
    return run.last


def load_vgg(options: Options) -> Vgg:
    """Loads the backbone of the perceptual losses. Raises BadInput for a layer that it doesn't have."""
    vgg = features.load(options.features)
    features.check_layers(vgg, options.content_layers, flag="--content-layers")
    features.check_layers(vgg, options.style_layers, flag="--style-layers")
    return vgg


def style_warm_up(step: int, options: Options) -> float:
    """The fraction of the style weight to apply at a step. At full weight from the first step it would erase the
    photograph, which is hard to recover; a network that already has its styles continues at full weight."""
    begins = bool(options.add_style) or not options.init
    return min(1.0, (step + 1) / (0.1 * options.steps)) if begins else 1.0


def huber_loss(x: Tensor, target: Tensor) -> Tensor:
    """The mean of relative errors, squared up to 1 and linear beyond (Huber 1964): unpainted photographs are up to 18
    times as far from a painting as zero is, and squared, the farthest would dominate the gradient."""
    squared = relative_error(x, target)
    return torch.where(squared <= 1, squared, 2 * squared.clamp_min(1).sqrt() - 1).mean()


def build_net(options: Options, corpus: Gallery) -> tuple[StyleNet, tuple[str, ...], int]:
    """The initial network, the names of its styles, and the index of the first one to train."""
    names = tuple(corpus.paintings)
    if not options.init:
        return StyleNet(len(names), options.widths, outer=options.outer), names, 0
    before = load_net(Path(options.init))
    for name, asked in (("widths", list(options.widths)), ("outer", options.outer)):
        if asked != (there := before.net.options[name]):
            raise BadInput(f"--{name}: {asked}, but the network of {options.init} has {there}; give that")
    if not options.add_style:
        if set(before.names) != set(names):
            raise BadInput(f"--init: {options.init} knows {', '.join(before.names)}, not {', '.join(names)}")
        return before.net, before.names, 0
    if names[0] in before.names:
        raise BadInput(f"--add-style: {options.init} has a style {names[0]} already; rename the picture")
    return before.net.with_another(), (*before.names, *names), len(before.names)


def objective(options: Options) -> dict[str, Any]:
    """What the network was trained to minimise, for its evaluation."""
    kept = ("features", "content_layers", "style_layers", "content_weight", "style_weight", "tv_weight")
    return {name: value if isinstance(value := getattr(options, name), str | float) else list(value) for name in kept}


@torch.no_grad()
def grams_of(vgg: Vgg, paintings: list[np.ndarray], layers: tuple[str, ...], device: torch.device) -> dict[str, Tensor]:
    """The Gram matrices (S, C, C) of all paintings, by layer."""
    grams: dict[str, list[Tensor]] = {name: [] for name in layers}
    for painting in paintings:
        picture = torch.from_numpy(painting).permute(2, 0, 1)[None].float() / 255
        for name, activation in vgg(picture.to(device), layers).items():
            grams[name].append(gram(activation)[0])
    return {name: torch.stack(each) for name, each in grams.items()}


@torch.no_grad()
def save_samples(net: StyleNet, names: tuple[str, ...], corpus: Gallery, path: Path, *, count: int = 3) -> None:
    """Saves a sheet with a row for each held-out photograph: the photograph, then its picture in each style."""
    device = next(net.parameters()).device
    photo = torch.from_numpy(corpus.held_out[:count]).permute(0, 3, 1, 2).float().to(device) / 255
    rows = [corpus.held_out[:count]]
    for weights in torch.eye(len(names), device=device):
        painted = net(photo, weights.expand(count, -1))
        rows.append((painted * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy())
    plots.save_grid(np.concatenate(np.stack(rows, 1)), path, columns=len(names) + 1)


def load_net(checkpoint: Path) -> Served:
    """Loads a checkpoint's network, with the names of its styles. Raises BadInput if it holds another network."""
    state = load_checkpoint(checkpoint)
    try:
        return net_of(state).eval()
    except (KeyError, TypeError, RuntimeError) as error:
        raise BadInput(f"checkpoint {checkpoint}: not style's; `training.run style` writes those") from error


def net_of(state: dict[str, Any]) -> Served:
    """The same, from the contents of a checkpoint."""
    net = StyleNet(**state["network"])
    net.load_state_dict(state["net"])
    return Served(net, tuple(state["names"]), state["objective"])


def served(net: Served) -> Served:
    """What is exported: uint8 photograph and weights in, uint8 painting out."""
    return net


def members(net: Served) -> dict[str, list[str]]:
    """The names of the styles that `style_weights` are for, in order."""
    return {"style_weights": list(net.names)}


@torch.no_grad()
def golden(net: Served, corpus: Gallery) -> dict[str, np.ndarray]:
    """The golden batch: drawn pictures, each in another style and the last in a mixture, and the eager model's answers.

    Drawn, because the batch is published and there may be no right to publish the photographs.
    """
    content = computer_art.CORPORA["hommage_klee"](4, seed=0)[:, :61, :83].copy()  # sides that are not round numbers
    weights = np.eye(len(net.names), dtype=np.float32)[np.arange(len(content)) % len(net.names)]
    weights[-1] = 1
    image = net(torch.from_numpy(content), torch.from_numpy(weights)).numpy()
    return {"content": content, "style_weights": weights, "image": image}


def quantization(net: Served, corpus: Gallery) -> Quantization:
    """Calibrates on photographs in each style in turn. The first and last layers, which take and return pixels, stay in
    floats, at a cost of a few per cent of the time."""
    count, places = max(32, len(net.names)), spread(len(corpus.images))
    photographs = [corpus.images[places[k % len(places)]] for k in range(count)]
    weights = np.eye(len(net.names), dtype=np.float32)[np.arange(count) % len(net.names)]
    return Quantization(
        inputs={"content": photographs, "style_weights": list(weights)}, floats=("/net/down.0/", "/net/last/"),
        averaged=True,
    )  # fmt: skip


def evaluate(net: Served, corpus: Gallery, *, out: Path) -> dict[str, float]:
    """Metrics on held-out photographs; writes styles.png, each painting above the pictures in its style, into `out`."""
    if unknown := sorted(set(corpus.paintings) - set(net.names)):
        raise BadInput(f"--styles: the network knows {', '.join(net.names)}, not {', '.join(unknown)}; name its own")
    return measures.evaluate(net, corpus.held_out, corpus.paintings, out=out)
