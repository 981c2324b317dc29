"""Train the published loop on a global batch of four images; each rank saves its weights as FOLDER/RANK.json.

Times and noise are functions of the images, so that the ranks' shares together are the batch of one process.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import toy_diffusion

from guided_diffusion import dist_util, logger
from guided_diffusion.train_util import TrainLoop


class ReadFromImages:
    """A diffusion whose times and noise are read from the images."""

    num_timesteps = toy_diffusion.STEPS

    def __init__(self, microbatches):
        self.inner = toy_diffusion.diffusion()
        self.microbatches = microbatches

    def training_losses(self, model, x_start, t, model_kwargs=None):
        t = ((x_start[:, 0, 0, 0] + 1) / 2 * (self.num_timesteps - 1)).long()
        terms = self.inner.training_losses(model, x_start, t, noise=torch.sin(40 * x_start))
        return {name: values / self.microbatches for name, values in terms.items()}


def main(folder, microbatch):
    dist_util.setup_dist()
    rank, size = dist_util.rank(), dist_util.world_size()
    logger.configure(folder, ["csv"])
    share = 4 // size
    data = ((batch[rank * share : (rank + 1) * share], {}) for batch, _ in toy_diffusion.data(4))
    training = TrainLoop(
        model=toy_diffusion.Network(seed=rank),
        diffusion=ReadFromImages(1 if int(microbatch) < 1 else share // int(microbatch)),
        data=data,
        batch_size=share,
        microbatch=int(microbatch),
        lr=0.05,
        ema_rate="0.9",
        log_interval=1,
        save_interval=10,
        resume_checkpoint="",
        lr_anneal_steps=3,
    )
    training.run_loop()
    seen = dict(
        weights=[w for p in training.model.parameters() for w in p.flatten().tolist()],
        averages=[w for p in training.ema_params[0] for w in p.flatten().tolist()],
        global_batch=training.global_batch,
        use_ddp=training.use_ddp,
    )
    Path(folder, f"{rank}.json").write_text(json.dumps(seen))


main(*sys.argv[1:])
