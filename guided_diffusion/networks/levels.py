"""Networks of levels, each with half the side of the one above: from flags to levels, and back from tensors' shapes."""

import re

from ..errors import UserError
from ..flags import SIDE, WIDTH, Legal, at_least, flag, int_list, number, whole
from ..image_labels import of_text

NUM_CLASSES = 1000
# below which a side of SIDE pixels has none left to halve
MOST_LEVELS = SIDE.bit_length()
# channels that images may have: grey, RGB, RGBA
IMAGE_CHANNELS = (1, 3, 4)

CHANNEL_MULTS = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
    16: (1, 2, 2),
}


def image_size_flag():
    """The flag of an image size."""
    return flag(64, "Height and width of the images in pixels.", legal=at_least(1, SIDE), essential="data_dir")


def image_channels_flag():
    """The flag of an image's channels."""
    legal = Legal("1, 3 or 4", lambda value: value in IMAGE_CHANNELS)
    return flag(3, "Channels of the images: 1 is grey, 3 RGB, 4 RGBA.", legal=legal)


def class_names_flag():
    """The flag of the names of the classes; `image_labels.of_text` reads it."""
    text = "Names of the classes by their numbers, with commas; training takes them from its data."
    return flag("", text, classes=True, idle=True)


def expect_names(names, num_classes):
    """Validate the text of --class_names against the number of classes, of which some may have none."""
    found = of_text(names)
    if len(found) > num_classes:
        raise UserError(f"--class_names has {len(found)} names; expected at most one for each of {num_classes} classes")
    if twice := sorted({name for name in found if found.count(name) > 1}):
        raise UserError(f"--class_names has {twice[0]} twice; expected a name of its own for each class")


# -- from flags --------------------------------------------------------------------------------------


def channel_multipliers(channel_mult, image_size, defaults=CHANNEL_MULTS, name="channel_mult", size_flag="image_size"):
    """Multipliers of the levels: those of the text "1,2,3,4", or of the image size where it is empty.

    :param name: of the flag of the text, for the error.
    :param size_flag: the flag of the image size, likewise.
    """
    if channel_mult:
        try:
            mult = tuple(number(m) if "." in m else whole(m) for m in channel_mult.split(","))
        except ValueError:
            mult = (0,)
        if not all(0 < m <= WIDTH for m in mult):
            raise UserError(f"--{name} is {channel_mult!r}; expected positive numbers such as 1,2,3,4")
        return mult
    if image_size in defaults:
        return defaults[image_size]
    sizes = ", ".join(map(str, sorted(defaults)))
    raise UserError(
        f"--{size_flag} {image_size} has no default channel multipliers (sizes that have: {sizes}); "
        f"give --{name}, one number per level"
    )


def widths_of(mult, channels, name):
    """The channels of levels, of which each has `channels` times its multiplier, rounded down.

    :param name: of the flag of the channels, for the error.
    """
    widths = [int(m * channels) for m in mult]
    if 0 in widths:
        raise UserError(f"--{name} {channels} leaves a level without channels; expected more, or larger multipliers")
    return widths


def attention_rates(resolutions, image_size, name):
    """Down-sampling rates of the image sizes "32,16,8" at which attention stands.

    As published, a size that the network has no level for adds no attention.

    :param name: of the flag, for the error.
    """
    sizes = int_list(resolutions, name)
    if any(size < 1 for size in sizes):
        raise UserError(f"--{name} is {resolutions!r}; expected image sizes of 1 and up")
    return tuple(image_size // size for size in sizes)


def check_divisible(image_size, levels, name="image_size"):
    """Refuse an image size that `levels` levels cannot halve evenly; the error names the nearest that they can."""
    if levels > MOST_LEVELS:
        raise UserError(
            f"a network of {levels} levels would halve --{name} {image_size} {levels - 1} times; expected at most "
            f"{MOST_LEVELS} channel multipliers"
        )
    step = 2 ** (levels - 1)
    if image_size % step:
        below = image_size // step * step
        nearest = f"{below} and {below + step}" if below else f"{step}"
        raise UserError(
            f"--{name} {image_size} cannot be halved {levels - 1} times by a network of {levels} levels; "
            f"nearest: {nearest}"
        )


# -- from shapes -------------------------------------------------------------------------------------


def channels_of(state, inputs=1):
    """Channels of an image, by the first convolution.

    :param inputs: images that the network is given side by side.
    :raises ValueError: if no image has so many.
    """
    channels = state["input_blocks.0.0.weight"].shape[1] / inputs
    if channels not in IMAGE_CHANNELS:
        raise ValueError(f"images of {channels} channels")
    return int(channels)


def levels_of(state, width, levels, res_blocks):
    """Of each level the index of its first block and its channel multiplier; and the rates that have attention."""
    starts = [1 + level * (res_blocks + 1) for level in range(levels)]
    mult = [state[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0] / width for i in starts]
    attended = [2**level for level, i in enumerate(starts) if f"input_blocks.{i}.1.qkv.weight" in state]
    return starts, mult, attended


def blocks(state, name):
    """The number of blocks in a list of blocks."""
    return 1 + max((int(m[1]) for m in (re.match(rf"{name}\.(\d+)\.", k) for k in state) if m), default=-1)


def scale_shift(state):
    """Whether the timestep scales and shifts the normalisations."""
    out_channels = state["input_blocks.1.0.out_layers.3.weight"].shape[0]
    return state["input_blocks.1.0.emb_layers.1.weight"].shape[0] == 2 * out_channels


def mult_text(mult):
    """Channel multipliers as their flag has them."""
    return ",".join(f"{m:g}" for m in mult)


def sizes(mult, attended, image_size, attention_flag):
    """The flags of the image size and of the sizes with attention; {} where nothing tells the image size."""
    if image_size is None:
        image_size = next((s for s, m in CHANNEL_MULTS.items() if list(m) == list(mult)), None)
    if image_size is None:
        return {}
    return {"image_size": image_size, attention_flag: ",".join(str(image_size // rate) for rate in attended)}
