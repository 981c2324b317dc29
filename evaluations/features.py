"""What images are compared by: the activations of a network."""

import torch


class ClassifierFeatures:
    """What a noisy classifier's last layer reads, at timestep 0, where images have no noise.

    :param classifier: an EncoderUNetModel in eval mode.
    :param device: of the classifier.
    """

    def __init__(self, classifier, device="cpu"):
        self.classifier = classifier
        self.device = device
        self.last = [m for m in classifier.out.modules() if next(m.parameters(recurse=False), None) is not None][-1]

    @torch.no_grad()
    def __call__(self, images):
        """float32 [N, D] of uint8 images [N, H, W, 3], of the size the classifier takes."""
        seen = []
        hook = self.last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        try:
            x = torch.as_tensor(images, device=self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
            self.classifier(x, torch.zeros(len(x), dtype=torch.long, device=x.device))
        finally:
            hook.remove()
        return seen[0].float().flatten(1)
