"""The models of models/ and the digits that none of them has seen."""

import inspect
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

from guided_diffusion.script_util import create_classifier

MODELS = Path(__file__).parents[1] / "models"
CLASSIFIER = MODELS / "digits16_classifier.pt"


def held_out_digits():
    """uint8 [360, 16, 16, 1] and labels [360]: the digits that neither model was trained on."""
    data = load_digits()
    images = [Image.fromarray(np.round(d * (255 / 16)).astype(np.uint8)) for d in data.images[-360:]]
    grown = [np.asarray(i.resize((16, 16), Image.Resampling.BICUBIC)) for i in images]
    return np.stack(grown)[..., None], data.target[-360:]


def says(images):
    """What the embedded classifier says of uint8 images at timestep 0, computed without the script."""
    flags = json.loads(CLASSIFIER.with_suffix(".json").read_text())
    model = create_classifier(**{k: flags[k] for k in inspect.signature(create_classifier).parameters if k in flags})
    model.load_state_dict(torch.load(CLASSIFIER, weights_only=True))
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        return model.eval()(x, torch.zeros(len(x), dtype=torch.long)).argmax(dim=1).numpy()
