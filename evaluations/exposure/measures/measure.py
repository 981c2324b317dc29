"""What a measure is: sums over images that it reads from states, and curves over the kept steps that it makes of them.

A standard error needs nothing more: curves are made again of all sums but those of a share of the images, for each
share (the jackknife of Tukey 1958).
"""

from typing import ClassVar, NamedTuple

import numpy as np


class Setup(NamedTuple):
    """What is known before anything is measured.

    :ivar schedule: the NoiseSchedule.
    :ivar times: int [S] the kept timesteps, increasing.
    :ivar levels: float64 [S] alpha_bar at them.
    :ivar data_variance: mean over the real images of the unbiased variance of their values in [-1, 1].
    :ivar gaussian: the Gaussian of the real images' mean and covariance.
    """

    schedule: object
    times: np.ndarray
    levels: np.ndarray
    data_variance: float
    gaussian: object


class Measure:
    """One measure; see `MEASURES`.

    :cvar name: in tables.
    :cvar walks: names of the walks that it reads; see walks.py.
    :cvar curves: {curve: what it is, in a sentence}.
    :cvar drawn: curves of its panel in the figure.
    :cvar label: of that panel's vertical axis.
    :cvar scale: of that axis, "linear" or "log".
    """

    name = ""
    walks = ()
    curves: ClassVar = {}
    drawn = ()
    label = ""
    scale = "linear"

    def of_images(self, image):
        """{key: [N, ...]} that real images [N, C, H, W] add to the sums."""
        return {}

    def read(self, moment, setup):
        """{key: [N, ...]} that a Moment adds to the sums of its step."""
        raise NotImplementedError

    def estimate(self, sums, count, setup):
        """{curve: float64 [S]} of some images.

        :param sums: {key: float64 [...]} of `of_images` and {(walk, key): float64 [S, ...]} of `read`.
        :param count: of the images.
        """
        raise NotImplementedError

    def theory(self, values, setup):
        """{curve: float64 [S]} as a network and a solver without any error have them; curves without a theory are left
        out.

        :param values: {curve: float64 [S]} of `estimate`.
        """
        return {}
