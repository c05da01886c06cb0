"""Turn photos into paintings in the manner of others. Run: python clients/stylize.py PHOTO --style starry-night

Exit status: 0; 1 if a picture could not be read, the others being done; 2 if anything else is wrong.
"""

import contextlib
import re
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from functools import partial

try:
    from PIL import Image

    import atelier.cli as cli
    from atelier import Client, errors, folders, series, sheet, sizing, styling, tasks
    from atelier.words import counted
except ImportError as missing:
    why = f"is not installed, or is another version ({missing})"
    print(f"stylize.py: Atelier's SDK {why}: pip install ./clients", file=sys.stderr)
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)

SHEET_SIZE = 384
ABOUT = "{style}; {model} version {version}"
EXAMPLES = """\
  stylize.py --list                                      the styles there are
  stylize.py photo.jpg --style starry-night              out/photo-starry-night.png
  stylize.py photo.jpg --blend great-wave=0.7,scream=0.3 --size 1024 --out wave.jpg
  stylize.py photo.jpg --all                             the photo in every style, on one sheet
  stylize.py photo.jpg --style scream --keep-color       only the brightness is painted
  stylize.py frames --style tableau --out painted        a folder: the same names in another
"""


def parser() -> cli.Parser:
    made = cli.Parser(__file__, about=__doc__, examples=EXAMPLES)
    add = made.add_argument
    add("photos", nargs="*", metavar="PHOTO", help="a picture, or a folder of pictures or of a video's frames")
    group = made.add_argument_group("the style")
    either = group.add_mutually_exclusive_group(required=True).add_argument
    either("--style", metavar="NAME", help="one of --list")
    either("--blend", metavar="A=0.7,B=0.3", help="several, with their weights")
    either("--all", action="store_true", help="every style, on a sheet with their names")
    either("--list", action="store_true", help="only say which styles there are")
    add = made.add_argument_group("what you get").add_argument
    size = f"pixels of the long side (as given; {SHEET_SIZE} with --all)"
    add("--size", type=cli.at_least(sizing.SMALLEST_SENT), metavar="N", help=size)
    add("--strength", type=cli.between(0, 1), default=1.0, metavar="S", help="0 is the photo, 1 the painting (1)")
    add("--keep-color", action="store_true", help="keep the photo's colours, paint its brightness")
    add("--out", metavar="PATH", help="a .png .jpg .webp .tif, or a folder (out/PHOTO-STYLE.png)")
    made.add_model("style")
    return made


def planned(options: Namespace) -> list[folders.Job]:
    """The pictures and where their paintings go; settles what the options leave open."""
    if not options.photos:
        raise errors.InvalidInput("PHOTO: name a picture, or a folder of them")
    if options.blend is not None:
        with cli.naming("--blend"):
            options.style = styling.parsed(options.blend)
    if options.all and not options.size:
        options.size = SHEET_SIZE
    named = "styles" if options.all else options.blend or options.style
    return folders.plan(options.photos, out=options.out, tag=styling.slug(re.sub("[=,/]", "-", named)))


def painted(
    client: Client, looks: Sequence[series.Look], version: int | None, *, options: Namespace
) -> list[Image.Image]:
    """Of each picture the painting, or a sheet of all."""
    how = {name: getattr(options, name) for name in ("strength", "keep_color", "model")} | {"version": version}
    if not options.all:
        return client.stylize([picture for _, picture in looks], options.style, **how)
    names = client.styles(options.model)
    sheets = []
    for job, picture in looks:
        made = client.stylize([picture] * len(names), names, **how)
        info = {**made[0].info, "style": counted(len(names), "style")}
        cells = [(job.source.name, picture), *zip(names, made, strict=True)]
        with cli.naming(str(job.source)):
            sheets.append(sheet.contact(cells, title=ABOUT.format(**info)))
        sheets[-1].info = info
    return sheets


@contextlib.contextmanager
def style_checked(server: contextlib.AbstractContextManager[Client], options: Namespace) -> Iterator[Client]:
    """The server, once it has said that it knows the style."""
    with server as client:
        if not options.all:
            names = client.styles(options.model)
            with cli.naming("--style" if options.blend is None else "--blend"):
                styling.label(options.style, names)
        yield client


def stylize(options: Namespace) -> cli.Outcome:
    """Looks at a picture before it asks for a server."""
    server = cli.connect(options, __file__, task=tasks.STYLIZE)
    if options.list:
        with server as client:
            return cli.Outcome("\n".join(client.styles(options.model)))
    jobs, most = planned(options), tasks.STYLIZE.contract(options.model).max_pixels
    return series.run(
        jobs,
        style_checked(server, options),
        title="stylize",
        fitted=partial(sizing.sized, size=options.size, most=most, done="stylised", flag="--size"),
        made=partial(painted, options=options),
        about=ABOUT,
        version=options.version,
    )


if __name__ == "__main__":
    parser().run(stylize)
