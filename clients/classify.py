"""Name the garment in each picture, with the percentage of every class. Run: python clients/classify.py PICTURE...

Exit status: 0; 1 if a picture could not be read, the others having their answers; 2 if anything else is wrong.
"""

import json
import sys
from argparse import Namespace
from pathlib import Path

try:
    import numpy as np
    from PIL import Image

    from atelier import classification, cli, errors, garments, local, pictures, sheet, tasks
except ModuleNotFoundError as missing:
    print(f"classify.py: Atelier's SDK is not installed ({missing.name}): pip install ./clients", file=sys.stderr)
    sys.exit(2)

Look = tuple[str, Image.Image, classification.Images]
RAW = (garments.SIZE, garments.SIZE)
CHECKOUT = Path(__file__).resolve().parents[1]
EXAMPLES = """\
  classify.py boot.jpg                           the class, and the percentage of all ten
  classify.py --top 1 --language fr photos/*     a line for each, in French
  classify.py --sheet out/sheet.png photos/*     each as given, as the network saw it, and its answer
  classify.py --json photos/* > answers.json     all of it for other programs
  classify.py --method raw test-00042.png        a picture of Fashion-MNIST itself, 28 x 28, white on black
"""


def parser() -> cli.Parser:
    made = cli.Parser(__file__, about=__doc__, examples=EXAMPLES)
    add = made.add_argument
    add("pictures", nargs="+", metavar="PICTURE", help="a file with one garment: PNG, JPEG, WebP, GIF, TIFF, ...")
    add = made.add_argument_group("what you get").add_argument
    add("--top", type=cli.at_least(1), metavar="K", help="only the K most probable classes (all)")
    add("--language", choices=tuple(garments.NAMES), default="en", help="of the classes' names (en)")
    add("--json", action="store_true", help="one JSON document, with the errors, too")
    add("--sheet", type=Path, metavar="PNG", help="also draw each picture beside its answer")
    ways = classification.METHODS
    add = made.add_argument_group("how it is seen").add_argument
    add("--method", choices=ways, default="find", help="find the garment first, do as the source program, or nothing")
    made.add_model("classifier")
    return made


def look(path: str, method: classification.Method) -> Look:
    """A picture as it was given, small, and as the network is to see it."""
    picture = pictures.open_picture(path, say=cli.say)
    with cli.naming(path):
        seen = classification.prepared(picture, method=method)
    if not seen.any():
        cli.say(f"{path}: no garment was found, and nothing is what the network sees")
    picture.thumbnail((sheet.SIDE, sheet.SIDE))
    return path, picture, seen


def tried(path: str, method: classification.Method) -> Look | errors.InvalidInput:
    """What `look` gives, or why it cannot, which is said at once."""
    try:
        return look(path, method)
    except errors.InvalidInput as exc:
        cli.say(str(exc))
        return exc


def answered(looks: list[Look], options: Namespace) -> list[sheet.Card]:
    where = {"checkout": CHECKOUT, "repository": options.repository, "in_process": options.in_process}
    with local.connect(options.url, task=tasks.CLASSIFY, model=options.model, say=cli.say, **where) as client:
        seen = np.stack([seen for _, _, seen in looks])
        answers = client.classify(seen, model=options.model, version=options.version)
    pairs = zip(looks, answers, strict=True)
    return [sheet.Card(*look, answer.translated(options.language)) for look, answer in pairs]


def as_text(card: sheet.Card, top: int | None) -> str:
    """The best class after the file's name, the others below."""
    (label, best), *others = card.answer.top(top)
    rows = [f"  {100 * probability:5.1f} %  {name}" for name, probability in others]
    return "\n".join([f"{card.name}: {label} {100 * best:.1f} %", *rows])


def as_json(card: sheet.Card, top: int | None) -> dict[str, object]:
    answer = card.answer
    classes = {name: round(probability, 6) for name, probability in answer.top(top)}
    source = {"model": answer.model, "version": answer.version}
    return {"class": answer.label, "probability": round(answer.probability, 6), "probabilities": classes, **source}


def classify(options: Namespace) -> cli.Outcome:
    """Looks at every picture before it asks for a server."""
    if options.sheet:
        with cli.naming("--sheet"):
            sheet.check(options.sheet, len(options.pictures), given=options.pictures)
    looked = {path: tried(path, options.method) for path in options.pictures}
    looks = [look for look in looked.values() if isinstance(look, tuple)]
    if options.method != "raw" and any(picture.size == RAW for _, picture, _ in looks):
        cli.say("pictures of 28 x 28 that are Fashion-MNIST's own, white on black, want --method raw")
    cards = answered(looks, options) if looks else []
    if cards and options.sheet:
        sheet.save(options.sheet, cards, top=options.top)
    partial = len(cards) < len(looked)
    if options.json:
        answers = {card.name: as_json(card, options.top) for card in cards}
        records = [{"file": path, **(answers.get(path) or {"error": str(look)})} for path, look in looked.items()]
        return cli.Outcome(json.dumps(records, indent=1), partial)
    lines = [as_text(card, options.top) for card in cards]
    if cards and options.sheet:
        lines.append(f"{options.sheet}: each picture beside its answer")
    return cli.Outcome("\n".join(lines), partial)


if __name__ == "__main__":
    parser().run(classify)
