"""Rows of a comparison as a picture."""

from PIL import Image, ImageDraw, ImageFont

from guided_diffusion.images import grid

from .tables import mean_and_spread, names_and_budgets

FONT_SIZE, TOP, SMALLEST = 14, 44, 26


def picture(rows, side=48, gap=10):
    """A Pillow image: a line of images for each sampler, a block of columns for each budget, the distance beside it.

    :param side: images are enlarged by whole factors up to about so many pixels.
    :param gap: pixels between blocks.
    """
    names, budgets = names_and_budgets(rows)
    blocks = {(row.name, row.budget): images_in_a_row(row.images, side) for row in rows}
    distances = {(row.name, row.budget): "{:.2f} ± {:.2f}".format(*mean_and_spread(row.distances)) for row in rows}
    font = ImageFont.load_default(FONT_SIZE)

    def widest(texts):
        return max(round(font.getlength(text)) for text in texts)

    width, height = next(iter(blocks.values())).size
    line, beside = max(height, SMALLEST) + 2, widest([*distances.values(), "distance"])
    left, block = widest(names) + 2 * gap, width + beside + 3 * gap
    canvas = Image.new("RGB", (left + block * len(budgets), TOP + line * len(names)), "white")
    draw = ImageDraw.Draw(canvas)
    for column, budget in enumerate(budgets):
        x = left + column * block
        draw.text((x, TOP - 6), budget, fill="black", font=font, anchor="ls")
        draw.text((x + width + gap, TOP - 6), "distance", fill="dimgrey", font=font, anchor="ls")
        for place, name in enumerate(names):
            y = TOP + place * line
            if column == 0:
                draw.text((gap, y + height // 2), name, fill="black", font=font, anchor="lm")
            if (name, budget) in blocks:
                canvas.paste(blocks[name, budget], (x, y))
                middle = (x + width + gap, y + height // 2)
                draw.text(middle, distances[name, budget], fill="black", font=font, anchor="lm")
    return canvas


def images_in_a_row(images, side):
    """A Pillow image of uint8 images [n, H, W, C] side by side, enlarged."""
    pixels = grid(images, len(images))
    block = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    scale = max(1, side // images.shape[1])
    return block.resize((block.width * scale, block.height * scale), Image.Resampling.NEAREST)
