"""Colour gray photos. Run: python clients/colorize.py PHOTO...   (one in colour is grayed first)

Exit status: 0; 1 if a picture could not be read, the others being done; 2 if anything else is wrong.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial

try:
    from PIL import Image

    import atelier.cli as cli
    from atelier import Client, colorizing, folders, series, sheet, sizing, tasks
except ImportError as missing:
    why = f"is not installed, or is another version ({missing})"
    print(f"colorize.py: Atelier's SDK {why}: pip install ./clients", file=sys.stderr)
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)

ABOUT = "{model} version {version}, stage {stage:g}"
FIRST, LAST = colorizing.STAGES
MOST = colorizing.MOST_SATURATION
EXAMPLES = """\
  colorize.py photo.jpg                          out/photo-color.png
  colorize.py photo.jpg --stage 1                as the first stage has it: safer, paler
  colorize.py photo.jpg --saturation 1.3         stronger colours; 0 is gray
  colorize.py photo.jpg --compare                before, after, and the truth if it has colour, on one sheet
  colorize.py album --size 1024 --out coloured   a folder: the same names in another
"""


def parser() -> cli.Parser:
    made = cli.Parser(__file__, about=__doc__, examples=EXAMPLES)
    add = made.add_argument
    add("photos", nargs="+", metavar="PHOTO", help="a picture, or a folder of pictures or of a video's frames")
    add = made.add_argument_group("what you get").add_argument
    add("--stage", type=cli.between(FIRST, LAST), default=LAST, metavar="S", help="1, 2, or a mixture such as 1.5 (2)")
    add("--saturation", type=cli.between(0, MOST), default=1.0, metavar="F", help=f"0 is gray, {MOST:g} the most (1)")
    add("--size", type=cli.at_least(sizing.SMALLEST_SENT), metavar="N", help="pixels of the long side (as given)")
    add("--compare", action="store_true", help="a sheet: before, after, and the truth if the photo has colour")
    add("--out", metavar="PATH", help="a .png .jpg .webp .tif, or a folder (out/PHOTO-color.png)")
    made.add_model("colorizer")
    return made


def coloured(
    client: Client, looks: Sequence[series.Look], version: int | None, *, options: Namespace
) -> list[Image.Image]:
    """Of each photo the coloured one, or a sheet that compares it."""
    how = {name: getattr(options, name) for name in ("stage", "saturation", "model")}
    made = client.colorize([picture for _, picture in looks], version=version, **how)
    return [compared(*look, after) for look, after in zip(looks, made, strict=True)] if options.compare else made


def compared(job: folders.Job, picture: Image.Image, after: Image.Image) -> Image.Image:
    before = sizing.with_alpha(colorizing.grayed(picture).convert("RGB"), picture)
    cells = [("before", before), ("after", after)]
    if colorizing.has_colour(picture):
        cells.append(("truth", picture))
    drawn = sheet.contact(cells, title=f"{job.source.name}: {ABOUT.format(**after.info)}", columns=len(cells))
    drawn.info = after.info
    return drawn


def colorize(options: Namespace) -> cli.Outcome:
    """Looks at a photo before it asks for a server."""
    jobs = folders.plan(options.photos, out=options.out, tag="color-compare" if options.compare else "color")
    most = tasks.COLORIZE.contract(options.model).max_pixels
    return series.run(
        jobs,
        cli.connect(options, __file__, task=tasks.COLORIZE),
        title="colorize",
        fitted=partial(sizing.sized, size=options.size, most=most, done="coloured", flag="--size"),
        made=partial(coloured, options=options),
        about=ABOUT,
        version=options.version,
    )


if __name__ == "__main__":
    parser().run(colorize)
