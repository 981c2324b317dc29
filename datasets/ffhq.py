"""FFHQ at 128 or 256 pixels, from a folder or zip of its pictures.

    python datasets/ffhq.py --data_dir thumbnails128x128 --out_dir data/ffhq128 --image_size 128

Pictures of that size are taken as they are, as ADM-ES and DDPM-IP took the thumbnails and Kaggle's ffhq256; larger
ones (images1024x1024) are halved by averaging, as ADM's training does.
"""

import pictures
import sources


def open_source(args):
    """The Source of the pictures in the order of their names."""
    return pictures.of_squares(args.data_dir, args.image_size, args.num_workers)


def main(argv=None):
    parser = sources.source_parser(
        "Write FFHQ.",
        "folder or .zip of thumbnails128x128, ffhq256 or images1024x1024, with or without sub-folders",
        out_dir="data/ffhq128",
        image_size=128,
        sizes=(128, 256),
    )
    sources.convert(open_source, parser.parse_args(argv))


if __name__ == "__main__":
    main()
