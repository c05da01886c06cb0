"""Paint a photo in the manner of any painting, step by step. Run: python clients/paint.py PHOTO PAINTING

Slow and thorough (Gatys et al. 2015); stylize.py is quick, in the styles it has learnt. Ctrl-C keeps the last canvas.
"""

import re
import sys
import time
from argparse import Namespace
from collections import deque
from pathlib import Path
from typing import Any

try:
    from PIL import Image
    from tqdm import tqdm

    import atelier.cli as cli
    from atelier import Painting, Stroke, errors, files, folders, painting, pictures, saving, sizing, tasks
    from atelier.styling import slug
    from atelier.words import counted
except ImportError as missing:
    why = f"is not installed, or is another version ({missing})"
    print(f"paint.py: Atelier's SDK {why}: pip install ./clients", file=sys.stderr)
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)

SIZE = 512
FRAMES = 50
FILM_HOLDS_S = 1
NUMBERS = ("iterations", "every", "content_weight", "style_weight", "tv_weight", "start", "seed", "scales", "optimizer")
LAYERS = ("content_layers", "style_layers")
EXAMPLES = """\
  paint.py photo.jpg monet.jpg                            out/photo-monet.png, in 100 iterations
  paint.py photo.jpg monet.jpg --film out/monet.mp4       the painting coming into being, as a film
  paint.py photo.jpg monet.jpg --style-weight 20          more of the painting, less of the photo
  paint.py photo.jpg monet.jpg --start noise --content-weight 0    what the style is by itself
  paint.py photo.jpg monet.jpg --size 1024 --iterations 300        larger: coarse first, then fine
"""


def parser() -> cli.Parser:
    made = cli.Parser(__file__, about=__doc__, examples=EXAMPLES)
    add = made.add_argument
    add("photo", metavar="PHOTO", help="the picture to be painted")
    add("painting", metavar="PAINTING", help="the picture in whose manner")
    add = made.add_argument_group("what you get").add_argument
    add("--out", metavar="PATH", help="a .png .jpg .webp .tif, or a folder (out/PHOTO-PAINTING.png)")
    add("--film", metavar="PATH", help="how it came into being: a .mp4 .gif .webp .png .zip, or a folder of frames")
    add("--fps", type=cli.rate, default=10.0, metavar="N", help="frames of the film a second (10)")
    size = f"pixels of the long side ({SIZE}; a smaller photo stays as it is)"
    add("--size", type=cli.at_least(sizing.SMALLEST_SENT), metavar="N", help=size)
    add("--keep-color", action="store_true", help="keep the photo's colours, paint its brightness")
    add = made.add_argument_group("how it is painted").add_argument
    add("--iterations", type=int, metavar="N", help="steps towards the painting (100)")
    add("--every", type=int, metavar="N", help=f"look at it every N iterations (10; {FRAMES} times for a film)")
    add("--content-weight", type=float, metavar="W", help="how much of the photo; 0 is none (1)")
    add("--style-weight", type=float, metavar="W", help="how much of the painting; 0 is none (5)")
    add("--tv-weight", type=float, metavar="W", help="how smooth (10)")
    add("--content-layers", metavar="L=W,...", help=f"of {', '.join(painting.CONTENT_LAYERS)} (conv4_2=1)")
    add("--style-layers", metavar="L=W,...", help=f"of {', '.join(painting.STYLE_LAYERS)} (1 each)")
    add("--start", choices=painting.STARTS, help="what is painted over (content)")
    add("--seed", type=int, metavar="N", help="another number is other noise (0)")
    add("--scales", type=int, metavar="N", help="sizes from coarse to fine, each twice the one before (by its size)")
    add("--optimizer", choices=painting.OPTIMIZERS, help="l-bfgs gets further, adam needs less memory (l-bfgs)")
    made.add_model("painter", in_process=False)
    return made


def flag(knob: str) -> str:
    return f"--{knob.replace('_', '-')}"


def knobs(options: Namespace) -> dict[str, Any]:
    """Those that were given, checked. Raises InvalidInput, which begins with the flag."""
    given = {name: getattr(options, name) for name in (*NUMBERS, *LAYERS) if getattr(options, name) is not None}
    for name in LAYERS:
        with cli.naming(flag(name)):
            given |= {name: painting.parsed(given[name])} if name in given else {}
    try:
        wanted = painting.Knobs(**given)
    except errors.InvalidInput as exc:
        raise errors.InvalidInput(re.sub(r"^\w+", lambda name: flag(name[0]), str(exc))) from exc
    return {"every": max(1, wanted.iterations // FRAMES), **given} if options.film else given


def opened(options: Namespace) -> tuple[Image.Image, Image.Image]:
    """The photo at the size it is to be painted at, and the painting."""
    how = {"alpha": True, "least": sizing.SMALLEST_SENT, "say": cli.say}
    photo, style = (pictures.open_picture(path, **how) for path in (options.photo, options.painting))
    size = options.size or (SIZE if max(photo.size) > SIZE else None)
    most = tasks.PAINT.contract(options.model).max_pixels
    sized = sizing.sized(photo, size=size, most=most, name=options.photo, done="painted", flag="--size")
    return sized, sizing.sized(style, name=options.painting, done=None)


def collect(strokes: Painting, seen: deque[Stroke]) -> None:
    """Adds strokes to `seen` as they come, and shows the progress."""
    with tqdm(desc="paint", unit="it", disable=None) as bar:
        for stroke in strokes:
            seen.append(stroke)
            bar.total = stroke.total
            bar.set_postfix(content=f"{stroke.content_loss:.3f}", style=f"{stroke.style_loss:.4f}", refresh=False)
            bar.update(stroke.iteration - bar.n)


def save_film(seen: deque[Stroke], options: Namespace) -> None:
    """Every canvas at the size of the last, which stays for a moment where a film is shown."""
    frames = [pictures.as_rgb(stroke.image.resize(seen[-1].image.size)) for stroke in seen]
    if saving.format_of(options.film) not in (saving.FOLDER, ".zip"):
        frames += frames[-1:] * round(FILM_HOLDS_S * options.fps)
    saving.save(options.film, frames, fps=options.fps)


def save_last(target: Path, seen: deque[Stroke], options: Namespace) -> str:
    """Saves the last canvas, and the film; the line that says so."""
    last = seen[-1]
    about = "{model} version {version}".format(**last.image.info)
    folders.write(target, last.image, about=f"{Path(options.painting).stem}; {about}")
    if options.film:
        try:
            save_film(seen, options)
        except errors.AtelierError as exc:
            raise errors.InvalidInput(f"--film: {exc}; {target} is saved") from exc
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{target} is saved, the film is not") from None
    written = f"{target}, {options.film}" if options.film else str(target)
    size = f"{last.image.width} x {last.image.height}"
    losses = f"content {last.content_loss:.3f}, style {last.style_loss:.4f}"
    return f"{written}: {size}, {last.iteration} of {counted(last.total, 'iteration')}; {losses}; {about}"


def paint(options: Namespace) -> cli.Outcome:
    """Looks at everything it was given before it asks for a server."""
    given, (photo, style) = knobs(options), opened(options)
    with cli.naming("--out"):
        (job,) = folders.plan([options.photo], out=options.out, tag=slug(Path(options.painting).stem))
        files.check_apart(job.target, [options.painting])
        folders.check_holds(job.target, photo.size)
    if options.film:
        with cli.naming("--film"):
            saving.format_of(options.film)
        with cli.naming("--fps"):
            saving.check_fps(options.film, options.fps)
    with cli.naming("--film"):
        if options.film:
            saving.check(options.film, fps=options.fps, sides=photo.size)
            files.check_apart(Path(options.film), [options.photo, options.painting])
            files.check_apart(Path(options.film), [job.target], what="the painting itself")
    given |= {"keep_color": options.keep_color, "model": options.model, "version": options.version}
    seen: deque[Stroke] = deque(maxlen=None if options.film else 1)
    try:
        with cli.connect(options, __file__, task=tasks.PAINT) as client:
            began = time.monotonic()
            with client.paint(photo, style, **given) as strokes:
                collect(strokes, seen)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(save_last(job.target, seen, options) if seen else "") from None
    except errors.AtelierError as exc:
        if not seen:
            raise
        raise errors.ServerError(f"{exc}; what there was is kept: {save_last(job.target, seen, options)}") from exc
    return cli.Outcome(f"{save_last(job.target, seen, options)}, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    parser().run(paint)
