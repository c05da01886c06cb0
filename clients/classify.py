"""Name the garment in each picture, with the percentage of every class. Run: python clients/classify.py PICTURE...

Exit status: 0; 1 if a picture could not be read, the others having their answers; 2 if anything else is wrong.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

try:
    import numpy as np
    from PIL import Image

    import atelier.cli as cli
    from atelier import classification, errors, files, folders, garments, pictures, series, sheet, tasks
except ImportError as missing:
    why = f"is not installed, or is another version ({missing})"
    print(f"classify.py: Atelier's SDK {why}: pip install ./clients", file=sys.stderr)
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)

Garment = tuple[str, Image.Image, classification.Images]
RAW = (garments.SIZE, garments.SIZE)
EXAMPLES = """\
  classify.py boot.jpg                           the class, and the percentage of all ten
  classify.py --top 1 --language fr a.jpg b.jpg  a line for each, in French
  classify.py --sheet out/sheet.png photos       a folder: each as given, as the network saw it, and its answer
  classify.py --json photos > answers.json       all of it for other programs
  classify.py --method raw test-00042.png        a picture of Fashion-MNIST itself, 28 x 28, white on black
"""


def parser() -> cli.Parser:
    made = cli.Parser(__file__, about=__doc__, examples=EXAMPLES)
    add = made.add_argument
    add("pictures", nargs="+", metavar="PICTURE", help="a picture of one garment, or a folder of pictures")
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


def named(given: Sequence[str], but: Path | None) -> dict[str, str]:
    """Each picture once, in order, a folder's in its place; an older sheet, `but`, is none of them.

    Each with "", or with why it is refused, as a folder without pictures is. Raises InvalidInput if nothing else was
    given.
    """
    found: dict[str, str] = {}
    for path in given:
        try:
            if not files.is_dir(Path(path)):
                found[path] = ""
                continue
        except errors.InvalidInput as exc:
            found[path] = str(exc)
            continue
        below, refused = folders.pictures_in(Path(path), but=but)
        found |= dict.fromkeys(map(str, below), "") | {str(each): why for each, why in refused.items()}
    if len(set(given)) == 1 and all(found.values()):
        raise errors.InvalidInput(next(iter(found.values())))
    return found


def look(path: str, method: classification.Method) -> Garment:
    """A picture as it was given, small, and as the network is to see it."""
    picture = pictures.open_picture(path, say=cli.say)
    with cli.naming(path):
        seen = classification.prepared(picture, method=method)
    if not seen.any():
        cli.say(f"{path}: no garment was found, and nothing is what the network sees")
    picture.thumbnail((sheet.SIDE, sheet.SIDE))
    return path, picture, seen


def looked(paths: Iterable[str], method: classification.Method, refused: dict[str, str]) -> Iterator[Garment]:
    """What `look` gives of each picture that is not refused yet. Why there is none is said at once, and kept there."""
    for path in paths:
        try:
            if refused[path]:
                raise errors.InvalidInput(refused[path])
            seen = look(path, method)
        except errors.InvalidInput as exc:
            refused[path] = str(exc)
            cli.say(refused[path])
        else:
            yield seen


def answered(looks: Iterator[Garment], options: Namespace) -> list[sheet.Card]:
    """A card for each picture. Looks at one before it asks for a server."""
    if not (first := next(looks, None)):
        return []
    with cli.connect(options, __file__, task=tasks.CLASSIFY) as client:
        found = [first, *looks]
        if options.method != "raw" and any(picture.size == RAW for _, picture, _ in found):
            cli.say("pictures of 28 x 28 that are Fashion-MNIST's own, white on black, want --method raw")
        seen = np.stack([seen for _, _, seen in found])
        answers = client.classify(seen, model=options.model, version=options.version)
    pairs = zip(found, answers, strict=True)
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
    """Answers for the pictures, in order, or why there is none."""
    refused = named(options.pictures, options.sheet)
    given = list(refused)
    if options.sheet:
        with cli.naming("--sheet"):
            sheet.check(options.sheet, len(given), given=given)
    with series.progress("classify", given) as paths:
        cards = answered(looked(paths, options.method, refused), options)
    if cards and options.sheet:
        sheet.save(options.sheet, cards, top=options.top)
    partial = len(cards) < len(given)
    if options.json:
        answers = {card.name: as_json(card, options.top) for card in cards}
        records = [{"file": path, **(answers.get(path) or {"error": refused[path]})} for path in given]
        return cli.Outcome(json.dumps(records, indent=1), partial)
    lines = [as_text(card, options.top) for card in cards]
    if cards and options.sheet:
        lines.append(f"{options.sheet}: each picture beside its answer")
    return cli.Outcome("\n".join(lines), partial)


if __name__ == "__main__":
    parser().run(classify)
