"""Make pictures four times as wide and as high. Run: python clients/upscale.py PICTURE...

Exit status: 0; 1 if a picture could not be read, the others being done; 2 if anything else is wrong.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial

try:
    from PIL import Image

    import atelier.cli as cli
    from atelier import Client, folders, series, sheet, tasks, upscaling
except ImportError as missing:
    why = f"is not installed, or is another version ({missing})"
    print(f"upscale.py: Atelier's SDK {why}: pip install ./clients", file=sys.stderr)
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)

ABOUT = "{model} version {version}"
COMPARED = 2
EXAMPLES = """\
  upscale.py photo.jpg                           out/photo-x4.png
  upscale.py photo.jpg --out large.webp          in a format, and to a place, of one's own
  upscale.py photo.jpg --compare                 beside what bicubic interpolation makes of it, on one sheet
  upscale.py frames --out large                  a folder: the same names in another
"""


def parser() -> cli.Parser:
    made = cli.Parser(__file__, about=__doc__, examples=EXAMPLES)
    add = made.add_argument
    add("pictures", nargs="+", metavar="PICTURE", help="a picture, or a folder of pictures or of a video's frames")
    add = made.add_argument_group("what you get").add_argument
    add("--compare", action="store_true", help="a sheet: bicubic interpolation and the upscaler, side by side")
    add("--out", metavar="PATH", help="a .png .jpg .webp .tif, or a folder (out/PICTURE-x4.png)")
    made.add_model("upscaler")
    return made


def checked(picture: Image.Image, *, name: str, compare: bool) -> Image.Image:
    """A picture as it is enlarged. Raises InvalidInput, also if the sheet that compares it would be too large."""
    fit = upscaling.checked(picture, name=name)
    if compare:
        with cli.naming(name):
            sides = upscaling.SCALE * fit.width, upscaling.SCALE * fit.height
            sheet.check_contact(sides, COMPARED, columns=COMPARED)
    return fit


def enlarged(
    client: Client, looks: Sequence[series.Look], version: int | None, *, options: Namespace
) -> list[Image.Image]:
    """Of each picture the large one, or a sheet that compares it."""
    made = client.upscale([picture for _, picture in looks], model=options.model, version=version)
    return [compared(*look, large) for look, large in zip(looks, made, strict=True)] if options.compare else made


def compared(job: folders.Job, picture: Image.Image, large: Image.Image) -> Image.Image:
    bicubic = picture.resize(large.size, Image.Resampling.BICUBIC)
    cells = [("bicubic interpolation", bicubic), (ABOUT.format(**large.info), large)]
    title = f"{job.source.name}, {upscaling.SCALE} times as wide and as high"
    drawn = sheet.contact(cells, title=title, columns=COMPARED)
    drawn.info = large.info
    return drawn


def upscale(options: Namespace) -> cli.Outcome:
    """Looks at a picture before it asks for a server."""
    return series.run(
        folders.plan(options.pictures, out=options.out, tag="x4-compare" if options.compare else "x4"),
        cli.connect(options, __file__, task=tasks.UPSCALE),
        title="upscale",
        fitted=partial(checked, compare=options.compare),
        made=partial(enlarged, options=options),
        about=ABOUT,
        version=options.version,
        scale=upscaling.SCALE,
    )


if __name__ == "__main__":
    parser().run(upscale)
