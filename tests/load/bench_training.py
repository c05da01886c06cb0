"""How much faster a training step is than a plain float32 loop of the same networks, and whether the losses agree.

Run: make bench      (last line of stdout: one JSON object)

    python -m tests.load.bench_training                         wgan
    python -m tests.load.bench_training --network four-conv     classifier, one short epoch a round

Both loops run in turn in one process, on the same data with the same seed; the plain loops below are those that anybody
would write first. The plot out/bench_training.png lays their losses over each other.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from serving import cli
from tests.load import benches, tables
from training.data.corpus import Corpus
from training.data.fashion_mnist import Garments
from training.devices import keep_freed_memory
from training.models.classifier import net as classifier_net
from training.models.classifier import train as classifier
from training.models.wgan import net as wgan_net
from training.models.wgan import train as wgan
from training.rundir import RunDir

Loop = Callable[[Any, Any], tuple[float, list[float]]]
"""Options and corpus to the seconds of a step and the losses."""


def ours(recipe: Any, options: Any, corpus: Any) -> tuple[list[float], list[dict[str, float]]]:
    """The recipe as it is, with everything it writes: when it began and each step ended, and what it recorded."""

    class Timed(RunDir):
        def record(self, step: int, line: str, **stats: float) -> None:
            super().record(step, line, **stats)
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        about = {"name": corpus.name, "sha256": corpus.sha256}
        run = Timed(Path(folder) / "run", model="bench", preset="bench", options=options, corpus=about, resume=False)
        ends = [time.perf_counter()]
        recipe.train(options, run, corpus)
        rows = run.stats()
        run.close()
    return ends, rows


# --- wgan ---


def wgan_ours(options: wgan.Options, corpus: Corpus) -> tuple[float, list[float]]:
    ends, rows = ours(wgan, options, corpus)
    return (ends[-1] - ends[0]) / len(rows), [row["critic_loss"] for row in rows]


def wgan_plain(options: wgan.Options, corpus: Corpus) -> tuple[float, list[float]]:
    """The same algorithm without bfloat16 and without channels-last memory."""
    begun = time.perf_counter()
    torch.manual_seed(options.seed)
    generator, critic = (net() for net in wgan_net.NETWORKS[options.network])
    betas = (options.beta1, options.beta2)
    generator_adam = torch.optim.Adam(generator.parameters(), options.generator_lr, betas)
    critic_adam = torch.optim.Adam(critic.parameters(), options.critic_lr, betas)
    rng = torch.Generator().manual_seed(options.seed)
    torch.randn(options.rows * options.columns, 100, generator=rng)  # the recipe draws its grid first
    pictures = torch.from_numpy(corpus.images).permute(0, 3, 1, 2)
    losses = []
    for step in range(options.steps):
        for adam, rate in ((generator_adam, options.generator_lr), (critic_adam, options.critic_lr)):
            adam.param_groups[0]["lr"] = rate * wgan.lr_multiplier(step, options)
        for _ in range(options.critic_steps):
            real = pictures[torch.randint(len(pictures), (options.batch,), generator=rng)].float() / 127.5 - 1
            fake = generator(torch.randn(options.batch, 100, generator=rng)).detach()
            real_score, fake_score = critic(real), critic(fake)
            mix = torch.rand(options.batch, 1, 1, 1, generator=rng)
            interpolated = (mix * real + (1 - mix) * fake).requires_grad_()
            (gradient,) = torch.autograd.grad(critic(interpolated).sum(), interpolated, create_graph=True)
            penalty = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
            loss = fake_score.mean() - real_score.mean() + options.gradient_penalty * penalty
            drift = torch.cat([real_score, fake_score]).square().mean()
            critic_adam.zero_grad()
            (loss + options.drift * drift).backward()
            critic_adam.step()
        generator_adam.zero_grad()
        (-critic(generator(torch.randn(options.batch, 100, generator=rng))).mean()).backward()
        generator_adam.step()
        losses.append(loss.item())
    return (time.perf_counter() - begun) / options.steps, losses


# --- classifier: from the end of the first step, which allocates, to the end of an epoch; a step has its share of the
# validation ---


def classifier_ours(options: classifier.Options, corpus: Garments) -> tuple[float, list[float]]:
    ends, rows = ours(classifier, options, corpus)
    return (ends[-1] - ends[1]) / max(1, len(rows) - 1), [row["loss"] for row in rows]


def classifier_plain(options: classifier.Options, corpus: Garments) -> tuple[float, list[float]]:
    """The same network, order of batches and optimizer without bfloat16 and without channels-last memory."""
    torch.manual_seed(options.seed)
    net = classifier_net.NETWORKS[options.network]()
    adam = torch.optim.Adam(net.parameters(), options.lr, eps=1e-7)
    images = torch.from_numpy(corpus.train.images)[:, None]
    labels = torch.from_numpy(corpus.train.labels).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(options.seed))
    ends, losses, right = [], [], 0
    batches = len(images) // options.batch
    for batch in range(batches):
        adam.param_groups[0]["lr"] = options.lr * classifier.lr_multiplier(batch, batches, options.warm_up)
        chosen = order[batch * options.batch : (batch + 1) * options.batch]
        logits = net(images[chosen].float() / 255)
        loss = F.cross_entropy(logits, labels[chosen])
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
        right += int((logits.argmax(1) == labels[chosen]).sum())
        ends.append(time.perf_counter())
    net.eval()
    with torch.no_grad():
        for part in torch.from_numpy(corpus.validation.images)[:, None].split(512):
            net(part.float() / 255)
    return (time.perf_counter() - ends[0]) / max(1, len(losses) - 1), losses


# --- both in turn ---


def setting(network: str, steps: int) -> tuple[Any, Any, Loop, Loop]:
    """Options of so many steps, their corpus, our loop and the plain one."""
    if network == "four-conv":
        some = classifier.PRESETS[network]
        # A fifth is held out: as much validation to a step as in a whole epoch.
        options = dataclasses.replace(some, epochs=1, pictures=steps * some.batch * 5 // 4)
        return options, classifier.load_corpus(options), classifier_ours, classifier_plain
    preset = wgan.PRESETS["seed" if network == "source" else "default"]
    drawn = dataclasses.replace(preset, bf16=True, steps=steps, pictures=1024, samples_every=10**6, ema=0.0)
    return drawn, wgan.load_corpus(drawn), wgan_ours, wgan_plain


def plot(network: str, fast: list[float], slow: list[float], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(slow, label="plain float32")
    axes.plot(fast, label="ours", linestyle="--")
    axes.set(xlabel="step", ylabel="loss", title=f"{network}: the same seed twice")
    axes.legend()
    figure.savefig(out, dpi=110)


def main() -> int:
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=(*wgan_net.NETWORKS, "four-conv"), default="strips")
    parser.add_argument("--steps", type=tables.positive(int), default=12, help="of each loop in each round, 2 or more")
    parser.add_argument("--rounds", type=tables.positive(int), default=5)
    parser.add_argument("--out", type=tables.file, default=Path("out/bench_training.png"))
    args = parser.parse_args()
    if args.steps < 2:
        parser.error(f"--steps: {args.steps} has no range of losses to compare in; give 2 or more")
    return benches.run(report, args)


def report(args: argparse.Namespace) -> dict[str, Any]:
    keep_freed_memory()  # for both loops
    options, corpus, fast, slow = setting(args.network, args.steps)
    brief, few, *_ = setting(args.network, steps=1)
    for warm_up in (fast, slow):
        warm_up(brief, few)
    ratios, ours_s, plain_s = [], [], []
    for _ in range(args.rounds):
        (fast_s, ours_losses), (slow_s, plain_losses) = fast(options, corpus), slow(options, corpus)
        ours_s.append(fast_s)
        plain_s.append(slow_s)
        ratios.append(slow_s / fast_s)
    apart = float(np.median(np.abs(np.subtract(ours_losses, plain_losses))) / np.ptp(plain_losses))
    plot(args.network, ours_losses, plain_losses, args.out)

    threads = torch.get_num_threads()
    print(f"{args.network}, {args.rounds} rounds of {args.steps} steps in turn, {threads} threads")
    print(f"a step: plain {statistics.median(plain_s):.2f} s, ours {statistics.median(ours_s):.2f} s")
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"plain / ours: {statistics.median(ratios):.2f}, median of rounds from {spread}")
    print(f"losses apart by {apart:.1%} of their range (median step); {args.out}")
    return {
        "bench": "training", "network": args.network, "steps": args.steps, "rounds": args.rounds,
        "ratio": round(statistics.median(ratios), 3), "ours_s": statistics.median(ours_s),
        "plain_s": statistics.median(plain_s), "losses_apart": apart, "threads": threads,
        "torch": torch.__version__,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
