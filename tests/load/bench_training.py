"""How much faster a training step is than a plain float32 loop of the same networks, and whether the losses agree.

Run: make bench      (last line of stdout: one JSON object)

Both loops run in turn in one process, on the same data with the same seed; the plain loop below is the one that anybody
would write first. The plot out/bench_training.png lays the critic's losses over each other.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch

from training.data.corpus import Corpus
from training.devices import keep_freed_memory
from training.models.wgan import train as recipe
from training.models.wgan.net import NETWORKS
from training.rundir import RunDir

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def ours(options: recipe.Options, corpus: Corpus) -> tuple[float, list[float]]:
    """Seconds and critic losses of the recipe as it is, with everything it writes."""
    with tempfile.TemporaryDirectory() as folder:
        about = {"name": corpus.name, "sha256": corpus.sha256}
        run = RunDir(Path(folder) / "run", model="wgan", preset="bench", options=options, corpus=about, resume=False)
        begun = time.perf_counter()
        recipe.train(options, run, corpus)
        took = time.perf_counter() - begun
        losses = [row["critic_loss"] for row in run.stats()]
        run.close()
    return took, losses


def plain(options: recipe.Options, corpus: Corpus) -> tuple[float, list[float]]:
    """The same algorithm without bfloat16 and without channels-last memory."""
    begun = time.perf_counter()
    torch.manual_seed(options.seed)
    generator, critic = (net() for net in NETWORKS[options.network])
    betas = (options.beta1, options.beta2)
    generator_adam = torch.optim.Adam(generator.parameters(), options.generator_lr, betas)
    critic_adam = torch.optim.Adam(critic.parameters(), options.critic_lr, betas)
    luck = torch.Generator().manual_seed(options.seed)
    torch.randn(options.rows * options.columns, 100, generator=luck)  # the recipe draws its grid first
    pictures = torch.from_numpy(corpus.images).permute(0, 3, 1, 2)
    losses = []
    for step in range(options.steps):
        for adam, rate in ((generator_adam, options.generator_lr), (critic_adam, options.critic_lr)):
            adam.param_groups[0]["lr"] = rate * recipe.learning_rate(step, options)
        for _ in range(options.critic_steps):
            real = pictures[torch.randint(len(pictures), (options.batch,), generator=luck)].float() / 127.5 - 1
            fake = generator(torch.randn(options.batch, 100, generator=luck)).detach()
            real_score, fake_score = critic(real), critic(fake)
            mix = torch.rand(options.batch, 1, 1, 1, generator=luck)
            between = (mix * real + (1 - mix) * fake).requires_grad_()
            (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
            penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
            loss = fake_score.mean() - real_score.mean() + options.gradient_penalty * penalty
            drift = torch.cat([real_score, fake_score]).square().mean()
            critic_adam.zero_grad()
            (loss + options.drift * drift).backward()
            critic_adam.step()
        generator_adam.zero_grad()
        (-critic(generator(torch.randn(options.batch, 100, generator=luck))).mean()).backward()
        generator_adam.step()
        losses.append(loss.item())
    return time.perf_counter() - begun, losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=NETWORKS, default="strips")
    parser.add_argument("--steps", type=int, default=12, help="of each loop in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("out/bench_training.png"))
    args = parser.parse_args()

    keep_freed_memory()  # for both loops
    name = "seed" if args.network == "source" else "default"
    options = dataclasses.replace(
        recipe.PRESETS[name], bf16=True, steps=args.steps, pictures=1024, samples_every=10**6, ema=0.0
    )
    corpus = recipe.load_corpus(options)
    for warm_up in (ours, plain):
        warm_up(dataclasses.replace(options, steps=1), corpus)
    ratios, ours_s, plain_s = [], [], []
    for _ in range(args.rounds):
        (fast, ours_losses), (slow, plain_losses) = ours(options, corpus), plain(options, corpus)
        ours_s.append(fast / args.steps)
        plain_s.append(slow / args.steps)
        ratios.append(slow / fast)
    apart = float(np.median(np.abs(np.subtract(ours_losses, plain_losses))) / np.ptp(plain_losses))

    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    axes.plot(plain_losses, label="plain float32")
    axes.plot(ours_losses, label="bfloat16, channels last", linestyle="--")
    axes.set(xlabel="generator step", ylabel="critic loss", title=f"{args.network}: the same seed twice")
    axes.legend()
    figure.savefig(args.out, dpi=110)

    threads = torch.get_num_threads()
    print(f"{args.network}, {args.rounds} rounds of {args.steps} steps in turn, {threads} threads")
    print(f"a step: plain {statistics.median(plain_s):.2f} s, ours {statistics.median(ours_s):.2f} s")
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"plain / ours: {statistics.median(ratios):.2f}, median of rounds from {spread}")
    print(f"critic losses apart by {apart:.1%} of their range (median step); {args.out}")
    print(
        json.dumps(
            {
                "bench": "training",
                "network": args.network,
                "steps": args.steps,
                "rounds": args.rounds,
                "ratio": round(statistics.median(ratios), 3),
                "ours_s": statistics.median(ours_s),
                "plain_s": statistics.median(plain_s),
                "losses_apart": apart,
                "threads": threads,
                "torch": torch.__version__,
                "machine": platform.machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
