"""Train the WGAN-GP generator. Run: python -m training.run wgan --dry-run

Gulrajani et al. 2017, "Improved Training of Wasserstein GANs", on pictures of 128x128. Preset `seed` is the source's
program to the letter; the default is what ships.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from training import plots
from training.data import corpus as corpora
from training.data.corpus import Corpus
from training.devices import autocast, check_seed, pick_device
from training.errors import BadInput
from training.models.wgan import evaluate as measures
from training.models.wgan.net import NETWORKS, Served
from training.models.wgan.spec import LATENT, SIZE
from training.options import at_least, below_one, not_negative, one_of, positive, share
from training.rundir import RunDir, load_checkpoint


@dataclass(frozen=True, kw_only=True)
class Options:
    """Defaults are the run that ships. `batch` is in pictures; one step is one update of the generator."""

    corpus: str = "lines"
    """drawn corpus (lines, lines_uniform, schotter, interruptions, cubic_limit or hommage_klee), or a folder or zip of
    pictures"""
    pictures: int = 10_000
    """number of pictures to draw, or the most to take from a folder or zip"""
    fit: Literal["crop", "pad"] = "crop"
    """how pictures of a folder or zip are made square: crop or pad"""
    skip_broken: bool = False
    """leave out files that can't be read, instead of stopping at the first"""
    init: str = ""
    """checkpoint to start from instead of random weights; its corpus may be another"""
    seed: int = 0
    """random seed of the corpus, the initial weights and the batches"""
    network: str = "strips"
    """network: strips (small, for long lines) or source (the source program's)"""
    steps: int = 3_200
    """training steps; one step is one update of the generator"""
    batch: int = 32
    """pictures per batch"""
    critic_steps: int = 2
    """critic updates per generator update; 5 in the paper, where the critic learns no faster than the generator"""
    generator_lr: float = 4e-4
    """Adam learning rate of the generator"""
    critic_lr: float = 5e-4
    """Adam learning rate of the critic, above the generator's (Heusel et al. 2017): where the critic lags, the penalty
    grows without end"""
    decay_from: float = 0.5
    """share of the steps after which both learning rates fall linearly to zero; 1 keeps them constant"""
    beta1: float = 0.0
    """Adam's beta1 for generator and critic"""
    beta2: float = 0.99
    """Adam's beta2 for generator and critic"""
    gradient_penalty: float = 10.0
    """weight of the gradient penalty (Gulrajani et al. 2017)"""
    drift: float = 1e-3
    """weight of the squared critic score (Karras et al. 2018): keeps scores near zero, where bf16 is exact"""
    ema: float = 0.999
    """decay of the exponential moving average of the generator's weights, which is evaluated and served; 0 serves the
    last weights"""
    bf16: bool = True
    """bfloat16 autocast and channels-last memory; off: float32, which the convolutions of NVIDIA's GPUs from Ampere on
    round to TF32"""
    rows: int = 4
    """rows of a grid of samples"""
    columns: int = 8
    """columns of a grid of samples"""
    samples_every: int = 100
    """steps between two grids of samples"""
    checkpoint_minutes: float = 5.0
    """minutes between two checkpoints"""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        at_least(self, pictures=1, seed=0, steps=1, batch=1, critic_steps=1, rows=1, columns=1, samples_every=1)
        one_of(self, fit=("crop", "pad"), network=NETWORKS)
        positive(self, "generator_lr", "critic_lr", "gradient_penalty", "checkpoint_minutes")
        not_negative(self, "drift")
        share(self, "ema", "decay_from")
        below_one(self, "beta1", "beta2")


CORPUS_FROM_SEED = True
"""Whether the corpus that is drawn for a run depends on its seed, too."""

PRESETS = {
    "default": Options(),
    # The source's options. It has no average of weights, no decay and no drift term; its batch norm needs float32, and
    # gets it on a GPU, too, where only convolutions are rounded to TF32.
    "seed": Options(
        network="source",
        steps=1_200,
        batch=16,
        critic_steps=5,
        generator_lr=2e-4,
        critic_lr=2e-4,
        decay_from=1.0,
        beta1=0.5,
        beta2=0.999,
        drift=0.0,
        ema=0.0,
        bf16=False,
    ),
    # Takes seconds on a CPU: a smoke test, whose pictures need not be good.
    "tiny": Options(pictures=256, steps=4, batch=4, critic_steps=1, rows=2, columns=4, samples_every=2),
}


def load_corpus(options: Options) -> Corpus:
    corpus = corpora.load(
        options.corpus, count=options.pictures, seed=options.seed, size=SIZE,
        fit=options.fit, skip_broken=options.skip_broken,
    )  # fmt: skip
    if corpus.skipped:
        print(f"left out {len(corpus.skipped)} broken files: {', '.join(corpus.skipped)}", file=sys.stderr)
    return corpus


def train(options: Options, run: RunDir, corpus: Corpus) -> Path:
    """Trains until options.steps and returns the last checkpoint. If stopped, saves one and raises Stopped."""
    device = pick_device()
    torch.manual_seed(options.seed)
    generator, critic = (net().to(device) for net in NETWORKS[options.network])
    if options.bf16:
        for net in (generator, critic):
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    ema = copy.deepcopy(generator).requires_grad_(False)
    betas = (options.beta1, options.beta2)
    generator_adam = torch.optim.Adam(generator.parameters(), options.generator_lr, betas, fused=True)
    critic_adam = torch.optim.Adam(critic.parameters(), options.critic_lr, betas, fused=True)

    # One generator on the CPU draws everything, so that its state is the only RNG state that a resumed run needs.
    rng = torch.Generator().manual_seed(options.seed)
    grid_latents = torch.randn(options.rows * options.columns, LATENT, generator=rng)
    real_pictures = torch.from_numpy(corpus.images).permute(0, 3, 1, 2)

    parts: dict[str, Any] = {
        "generator": generator, "critic": critic, "average": ema,
        "generator_adam": generator_adam, "critic_adam": critic_adam,
    }  # fmt: skip

    def take(state: dict[str, Any]) -> None:
        for name, part in parts.items():
            part.load_state_dict(state[name])

    first = 0
    if (state := run.restore()) is not None:
        with run.restoring():
            take(state)
            rng.set_state(state["luck"])
            first = state["step"]
    elif options.init:
        state = own_checkpoint(Path(options.init), options.network)
        try:
            take(state)
        except (KeyError, RuntimeError, ValueError) as error:
            raise _another_version(Path(options.init), options.network) from error
    for adam in (generator_adam, critic_adam):
        adam.param_groups[0]["betas"] = betas  # the options', even if --init's checkpoint was made with others

    def checkpoint(step: int) -> None:
        states = {name: part.state_dict() for name, part in parts.items()}
        run.save({**states, "luck": rng.get_state(), "step": step, "network": options.network})

    def latents() -> Tensor:
        return torch.randn(options.batch, LATENT, generator=rng).to(device)

    def reals() -> Tensor:
        batch = real_pictures[torch.randint(len(real_pictures), (options.batch,), generator=rng)].to(device)
        batch = batch.float() / 127.5 - 1  # uint8 (N, 3, H, W) -> [-1, 1]
        return batch.contiguous(memory_format=torch.channels_last) if options.bf16 else batch.contiguous()

    for step in run.steps(first, options.steps, save=checkpoint, every_minutes=options.checkpoint_minutes):
        multiplier = lr_multiplier(step, options)
        generator_adam.param_groups[0]["lr"] = multiplier * options.generator_lr
        critic_adam.param_groups[0]["lr"] = multiplier * options.critic_lr

        # --- critic: several steps per generator step (Gulrajani et al. 2017, algorithm 1) ---
        for _ in range(options.critic_steps):
            real = reals()
            with torch.no_grad(), autocast(device, options.bf16):
                fake = generator(latents()).float()
            with autocast(device, options.bf16):
                score = critic(torch.cat([real, fake])).float()
            real_score, fake_score = score[: options.batch].mean(), score[options.batch :].mean()
            mix = torch.rand(options.batch, 1, 1, 1, generator=rng).to(device)
            penalty = gradient_penalty(critic, mix * real + (1 - mix) * fake, bf16=options.bf16)
            critic_loss = fake_score - real_score + options.gradient_penalty * penalty
            critic_adam.zero_grad()
            (critic_loss + options.drift * score.square().mean()).backward()
            critic_adam.step()

        # --- generator ---
        with autocast(device, options.bf16):
            generator_loss = -critic(generator(latents())).float().mean()
        generator_adam.zero_grad()
        generator_loss.backward()
        generator_adam.step()
        # Ramp up the decay, because at first the average would be mostly the random initial weights.
        ramp_up = 1.0 if options.init else (1 + step) / (10 + step)
        update_ema(ema, generator, decay=min(options.ema, ramp_up))

        run.record(
            step,
            f"critic {critic_loss.item():+8.3f} (real {real_score.item():+8.3f} fake {fake_score.item():+8.3f} "
            f"penalty {penalty.item():6.3f}) generator {generator_loss.item():+8.3f}",
            critic_loss=critic_loss.item(),
            real=real_score.item(),
            fake=fake_score.item(),
            penalty=penalty.item(),
            generator_loss=generator_loss.item(),
        )
        if (step + 1) % options.samples_every == 0 or step + 1 == options.steps:
            pictures = generate(ema, grid_latents)
            plots.save_grid(pictures, run.path / "samples" / f"{step + 1:06d}.png", columns=options.columns)

    plots.save_convergence(
        run.stats(), run.path / "convergence.png",
        title=f"{run.path.name}: {options.corpus}", losses="loss (difference of critic scores)",
    )  # fmt: skip
    return run.last


def lr_multiplier(step: int, options: Options) -> float:
    """Multiplier of both learning rates: 20 steps of warm-up, a plateau, linear decay to zero; 1 without decay."""
    warm_up = min(1.0, (step + 1) / 20) if options.decay_from < 1 else 1.0
    left = (options.steps - step) / (options.steps * (1 - options.decay_from)) if options.decay_from < 1 else 1.0
    return min(warm_up, left, 1.0)


def gradient_penalty(critic: nn.Module, picture: Tensor, *, bf16: bool) -> Tensor:
    """Mean squared deviation from 1 of the norm of the critic's gradient at float (N, 3, H, W)."""
    picture = picture.detach().requires_grad_()
    with autocast(picture.device, bf16):
        score = critic(picture).float().sum()
    (gradient,) = torch.autograd.grad(score, picture, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


@torch.no_grad()
def update_ema(ema: nn.Module, net: nn.Module, *, decay: float) -> None:
    """Moves the weights of `ema` towards those of `net`, and copies the buffers (batch norm's statistics)."""
    for mean, now in zip(ema.parameters(), net.parameters(), strict=True):
        mean.lerp_(now, 1 - decay)
    for kept, current in zip(ema.buffers(), net.buffers(), strict=True):
        kept.copy_(current)


@torch.no_grad()
def generate(generator: nn.Module, latents: Tensor, *, batch: int = 64) -> np.ndarray:
    """Latents float (N, 100) -> pictures uint8 (N, 128, 128, 3), without bfloat16; on a CPU as in serving."""
    device = next(generator.parameters()).device
    was_training = generator.training
    net = served(generator)
    pictures = torch.cat([net(part.to(device)).cpu() for part in latents.split(batch)])
    generator.train(was_training)
    return pictures.numpy()


def served(generator: nn.Module) -> Served:
    """The module to export: latent in, uint8 picture out."""
    return Served(generator).eval()


def own_checkpoint(path: Path, network: str | None = None) -> dict[str, Any]:
    """A checkpoint of this recipe, of the given network or of any. Raises BadInput if it is something else."""
    state = load_checkpoint(path)
    # In checkpoints of style and colorizer it is a dictionary, which is not hashable.
    if not isinstance(state.get("network"), str) or state["network"] not in NETWORKS or "average" not in state:
        raise BadInput(f"checkpoint {path}: not one of wgan's; give one that `training.run wgan` wrote")
    if network not in (None, state["network"]):
        raise BadInput(f"checkpoint {path}: of the {state['network']} network; --network {network} can't start from it")
    return state


def load_net(checkpoint: Path) -> nn.Module:
    """The averaged generator of a checkpoint, ready to serve. Raises BadInput if it holds another network."""
    state = own_checkpoint(checkpoint)
    network = state["network"]
    generator = NETWORKS[network][0]()
    try:
        generator.load_state_dict(state["average"])
    except RuntimeError as error:
        raise _another_version(checkpoint, network) from error
    return generator.eval()


def _another_version(checkpoint: Path, network: str) -> BadInput:
    return BadInput(f"checkpoint {checkpoint}: made by another version of the {network} network; train anew")


def evaluate(generator: nn.Module, corpus: Corpus, *, out: Path) -> dict[str, float]:
    """Metrics of 2,048 generated pictures; also writes `out`/evaluation.png."""
    latents = torch.randn(measures.COUNT, LATENT, generator=torch.Generator().manual_seed(1))
    pictures = generate(generator, latents)
    measures.report(pictures, corpus, out / "evaluation.png")
    return measures.evaluate(pictures, corpus)


def golden(generator: nn.Module, _corpus: Corpus) -> dict[str, np.ndarray]:
    """A few latents and the eager model's pictures for them, named as on the wire."""
    latents = torch.randn(4, LATENT, generator=torch.Generator().manual_seed(2))
    return {"latent": latents.numpy(), "image": generate(generator, latents)}
