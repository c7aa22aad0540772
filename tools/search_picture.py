"""The picture of tools/search.py: queries and their answers, kept to a size that can be looked at."""
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from shared.plumbing.files import write_bytes
from shared.reading.layouts import SUFFIXES

FORMATS = {"": "PNG", ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
MOST_QUERIES, MOST_ANSWERS, SIDE = 20, 10, 160          # SIDE: of an image, in px
SOFTWARE, TOOL = 0x0131, "tools/search.py"              # an EXIF tag, by which a picture is known as ours


def draw(queries, found, rows, decode):
    """A picture of at most MOST_QUERIES, evenly chosen: a row for each, the SAR image, then its answers with scores.

    found: of each query [(rank, row of the gallery, score)]. decode: gives (n, size, size, 3) uint8 of (files,
    modality, size).
    """
    chosen = np.linspace(0, len(queries) - 1, min(len(queries), MOST_QUERIES)).astype(int)
    most = max(len(answers) for answers in found)
    columns, note = 1 + min(most, MOST_ANSWERS), left_out(len(queries), most)
    font, width, height, top = ImageFont.load_default(size=13), SIDE + 8, SIDE + 40, 24 if note else 0
    sheet = Image.new("RGB", (columns * width, top + len(chosen) * height), "white")
    canvas = ImageDraw.Draw(sheet)
    canvas.text((4, 4), note, fill="black", font=font)
    for line, i in enumerate(chosen):
        answers = []
        for rank, row, score in found[i][:MOST_ANSWERS]:
            file = Path(rows[row].get("file") or "")
            is_image = file.suffix.lower() in SUFFIXES and file.is_file()       # else a tensor's row, or no longer here
            answers.append((file if is_image else None, f"{rows[row]['name']}\n{rank}: {score:.3f}"))
        there = [file for file, _ in answers if file]
        images = dict(zip(there, decode(there, "opt", SIDE)))
        shown = [(decode([queries[i]], "sar", SIDE)[0], f"query {queries[i].stem}")]
        shown += [(images.get(file), text) for file, text in answers]
        for column, (image, text) in enumerate(shown):
            left, upper = column * width + 4, top + line * height + 4
            if image is not None:
                sheet.paste(Image.fromarray(image.numpy()), (left, upper))
            else:
                canvas.rectangle((left, upper, left + SIDE, upper + SIDE), outline="grey")
            text = text.encode(errors="replace").decode()             # of a name that is no UTF-8
            canvas.text((left, upper + SIDE + 2), text, fill="black", font=font)
    return sheet


def left_out(queries, answers):
    """What a picture of so many shows alone, in words; "" where that is all."""
    parts = []
    if queries > MOST_QUERIES:
        parts.append(f"{MOST_QUERIES} of {queries} queries, evenly chosen")
    if answers > MOST_ANSWERS:
        parts.append(f"the first {MOST_ANSWERS} of {answers} answers")
    return "; ".join(parts)


def is_our_picture(file):
    try:
        with Image.open(file) as picture:
            return picture.getexif().get(SOFTWARE) == TOOL
    except OSError:
        return False


def write_picture(sheet, file):
    exif, content = Image.Exif(), io.BytesIO()
    exif[SOFTWARE] = TOOL
    sheet.save(content, FORMATS[file.suffix.lower()], exif=exif)
    write_bytes(file, content.getbuffer())
