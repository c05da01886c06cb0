"""Walk through a model's latent space and save what you see. Run: python clients/walk.py --steps 20"""

import dataclasses
import sys
from argparse import BooleanOptionalAction, Namespace
from pathlib import Path

try:
    from tqdm import tqdm

    import atelier.cli as cli
    from atelier import errors, files, latents, paths, saving, tasks
    from atelier.recipe import Recipe
except ImportError as missing:
    why = f"is not installed, or is another version ({missing})"
    print(f"walk.py: Atelier's SDK {why}: pip install ./clients", file=sys.stderr)
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)

# With 20 steps at 20 frames a second, which a GIF can keep exactly: a loop of 4 seconds, without a seam.
KEYFRAMES, SEED = 4, 1
MOST = paths.MOST_FRAMES
EXAMPLES = """\
  walk.py --steps 20                               a looping animation, out/walk.gif
  walk.py --seed 7 --keyframes 6 --out walk.mp4    another walk, through six pictures, as a video
  walk.py --pairs 5 --strip                        five unrelated pairs, a row for each, out/walk.png
  walk.py --latent                                 with the 100 numbers behind each frame beside it
  walk.py --upscale                                four times as large, 512 x 512 pixels
  walk.py --save-vectors mine.txt                  keep its keyframes as text; edit them, and then
  walk.py --vectors mine.txt                       walk through your own
  walk.py --again out/walk.gif --out walk.webp     the same frames once more, in another format
"""


def parser() -> cli.Parser:
    made = cli.Parser(__file__, about=__doc__, examples=EXAMPLES)
    group = made.add_argument_group("the walk")
    add, either = group.add_argument, group.add_mutually_exclusive_group().add_argument
    add("--steps", type=cli.at_least(1, MOST), metavar="N", help="frames from each keyframe to the next (20)")
    either("--keyframes", type=cli.at_least(2, MOST), metavar="N", help=f"pictures to walk through ({KEYFRAMES})")
    either("--pairs", type=cli.at_least(1, MOST), metavar="N", help="instead, N walks between two pictures each")
    add("--seed", type=cli.at_least(0), metavar="N", help=f"another number is another walk ({SEED})")
    add("--path", choices=paths.PATHS, help="straight, on great arcs, or smoothly through all (spline)")
    add("--loop", action=BooleanOptionalAction, help="end where it began (yes, but not for pairs)")
    add = made.add_argument_group("what you get").add_argument
    add("--out", metavar="PATH", help="a .gif .webp .png .mp4 .zip, or a folder of frames (out/walk.gif)")
    add("--fps", type=cli.rate, metavar="N", help="frames a second (20)")
    add("--upscale", action=BooleanOptionalAction, help="four times as large, through the upscaler as well")
    add("--strip", action=BooleanOptionalAction, help="all frames side by side in one picture")
    add("--latent", action=BooleanOptionalAction, help="each frame's 100 numbers beside it, as colours")
    add("--latent-scale", choices=("walk", "frame"), help="compare colours over the walk or a frame (walk)")
    group = made.add_argument_group("walks kept")
    add, either = group.add_argument, group.add_mutually_exclusive_group().add_argument
    either("--again", metavar="FILE", help="make a saved walk once more; other flags change it")
    either("--vectors", metavar="FILE", help="walk through these keyframes: text, one to a line")
    add("--save-vectors", metavar="FILE", help="keep the keyframes of this walk as such a file")
    made.add_model("wgan", implied=False)
    return made


def recipe(options: Namespace) -> Recipe:
    """The walk that was asked for: a new one, or a saved one with changes."""
    names = {field.name for field in dataclasses.fields(Recipe)} - {"keyframes", "pairs"}
    given = {name: value for name, value in vars(options).items() if name in names and value is not None}
    count, pairs = options.keyframes, options.pairs
    if (options.again or options.vectors) and (count or options.seed is not None or (options.again and pairs)):
        source, others = ("--again", ", --seed and --pairs") if options.again else ("--vectors", " and --seed")
        raise errors.InvalidInput(f"{source}: brings its own keyframes; leave out --keyframes{others}")
    if options.again:
        with cli.naming("--again"):
            saved = saving.read(options.again)
            if given.get("model", saved.model) != saved.model:
                given.setdefault("version", None)  # the saved one is the other model's
            if not options.model:
                with cli.naming(options.again):
                    tasks.GENERATE.contract(saved.model)
            return dataclasses.replace(saved, **given)
    if options.vectors:
        with cli.naming("--vectors"):
            keyframes = latents.load(options.vectors)
    else:
        given.setdefault("seed", SEED)
        keyframes = latents.draw(2 * pairs if pairs else count or KEYFRAMES, seed=given["seed"])
    if pairs and len(keyframes) != 2 * pairs:
        raise errors.InvalidInput(f"--pairs {pairs}: needs {2 * pairs} vectors, not {len(keyframes)}")
    with cli.naming("--vectors" if options.vectors else "--keyframes"):
        return Recipe(**{"keyframes": keyframes, "pairs": bool(pairs), "loop": not pairs, **given})


def check_vectors(path: Path, out: str, again: str | None) -> None:
    """Raises InvalidInput, before any work is done, if the keyframes cannot be written there or a walk is in the way.

    They may lie beside the frames of either.
    """
    here = files.resolved(path)
    walks = {again: files.is_dir(Path(again))} if again else {}
    walks[out] = saving.format_of(out) == saving.FOLDER
    for each, folder in walks.items():
        there = files.resolved(each)
        beside = folder and not saving.is_member(here.name)
        if here == there or here in there.parents or (there in here.parents and not beside):
            raise errors.InvalidInput(f"{path}: {each} is in the way, which is a walk; choose another file")
    files.check_file(path)


def walk(options: Namespace) -> cli.Outcome:
    """Renders and saves; the line that comes of it says where."""
    wanted = recipe(options)
    with cli.naming("--upscale"):
        if options.upscale is not None:
            wanted = wanted.upscaled(options.upscale, version=options.version)
    if options.upscale is False and options.model not in (None, wanted.model):
        raise errors.InvalidInput(f"--no-upscale: leave it out, or --model {options.model}, which upscales")
    height, width, _ = tasks.GENERATE.contract(wanted.model).outputs[0].shape
    out = options.out or ("out/walk.png" if wanted.strip else "out/walk.gif")
    with cli.naming("--out"):
        saving.format_of(out)
    with cli.naming("--fps"):
        saving.check_fps(out, wanted.fps)
    with cli.naming("--out"):
        saving.check(out, fps=wanted.fps, still=wanted.strip, sides=wanted.sides((width, height)))
    with cli.naming("--save-vectors"):
        if options.save_vectors:
            check_vectors(Path(options.save_vectors), out, options.again)
            given = filter(None, [options.vectors])  # with its comments
            files.check_apart(Path(options.save_vectors), given, what="the vectors that were given")
    with cli.connect(options, __file__, task=tasks.GENERATE, model=wanted.model) as client:
        frames = client.stream(wanted.latents(), model=wanted.model, version=wanted.version)
        pictures = list(tqdm(frames, desc="walk", unit="frame", disable=None))
    source = "own vectors" if wanted.seed is None else f"seed {wanted.seed}"
    made = dataclasses.replace(wanted, version=pictures[0].info["version"])
    saving.save(out, made.arranged(pictures), fps=made.fps, recipe=made)
    if options.save_vectors:
        latents.save(options.save_vectors, made.keyframes, note=source)
    what = f"{len(pictures)} frames, {len(pictures) / made.fps:.1f} s"
    return cli.Outcome(f"{out}: {what}; {made.model} version {made.version}, {source}")


if __name__ == "__main__":
    parser().run(walk)
