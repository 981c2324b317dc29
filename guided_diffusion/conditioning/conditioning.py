"""What a conditioning is: what a network is told beside x_t and t."""


class Conditioning:
    """One thing that a network is told. By itself it tells nothing.

    :cvar training: flag groups that training scripts take for it.
    :cvar sampling: flag groups that sampling scripts take for it.
    :cvar network: the flag group of the network that sampling tells it; None for all.
    :cvar shows_images: previews of training need example images of the data.
    :cvar left_out_by: the flag of training that lets a network know what it is `dropped` to; "" for none.
    """

    training = ()
    sampling = ()
    network = None
    shows_images = False
    left_out_by = ""

    @classmethod
    def of_training(cls, parsed):
        """The conditioning that resolved Parsed flags of a training ask for; None where they do not."""
        return

    @classmethod
    def of_sampling(cls, parsed):
        """The conditioning that resolved Parsed flags of a sampling ask for; None where they do not."""
        return

    def of_data(self, x, labels):
        """{name: tensor [N, ...]} of training images.

        :param x: [N, C, H, W] in [-1, 1].
        :param labels: int64 [N], or None where the data have none.
        """
        return {}

    def shown(self, count, x, labels):
        """{name: tensor [count, ...]} that previews of training are told.

        :param x, labels: [count, ...] images of the data and their labels; None unless something `shows_images`.
        """
        return {}

    def of_indices(self, noise, indices):
        """{name: tensor [N, ...]} on the CPU of images that are sampled.

        :param noise: the IndexedNoise or GlobalNoise of the images, from which it may draw.
        :param indices: of the images in the run.
        """
        return {}

    @staticmethod
    def dropped(cond):
        """{name: tensor} of what it leaves out of cond when guidance asks the network without it; {} leaves all in."""
        return {}
