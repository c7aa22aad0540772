# For code_Adv, and code_Adapt for the regions.
"""The critics of adversarial learning: what tells the embeddings of the two modalities apart."""
import torch
import torch.nn.functional as F
from torch import nn


class WassersteinCritic(nn.Module):
    """A critic D-512-512-1 whose mean difference estimates the distance between the modalities.

    Source: Arjovsky et al., "Wasserstein GAN", 2017, algorithm 1 (weights clipped to keep it Lipschitz).
    """

    betas = (0.9, 0.999)
    steps = 5

    def __init__(self, dim=512, clip=0.1):
        super().__init__()
        self.layers = _perceptron(dim, 1)
        self.clip = clip

    def distance(self, opt, sar):
        """Estimated Wasserstein distance (up to the Lipschitz constant) of (B, D) and (B, D) embeddings."""
        return self.layers(opt).mean() - self.layers(sar).mean()

    def critic_loss(self, opt, sar):
        """What the critic lowers: it looks for the largest difference."""
        return -self.distance(opt, sar)

    def model_loss(self, opt, sar):
        """What the model lowers: the distance that the critic finds."""
        return self.distance(opt, sar)

    @torch.no_grad()
    def constrain(self):
        for parameter in self.parameters():
            parameter.clamp_(-self.clip, self.clip)


class ModalityClassifier(nn.Module):
    """A critic that predicts the modality with cross-entropy; the model is trained on the reversed label.

    Source: Goodfellow et al., "Generative Adversarial Nets", 2014, section 3 (the non-saturating form).
    """

    betas = (0.5, 0.999)
    steps = 1

    def __init__(self, dim=512):
        super().__init__()
        self.layers = _perceptron(dim, 2)

    def critic_loss(self, opt, sar):
        return self._cross_entropy(opt, 0) + self._cross_entropy(sar, 1)

    def model_loss(self, opt, sar):
        return self._cross_entropy(opt, 1) + self._cross_entropy(sar, 0)

    def _cross_entropy(self, embeddings, modality):
        label = torch.full((len(embeddings),), modality, device=embeddings.device)
        return F.cross_entropy(self.layers(embeddings), label) / 2

    def constrain(self):
        """Nothing to keep within bounds."""


CRITICS = {"wasserstein": WassersteinCritic, "classifier": ModalityClassifier}


def critic_step(critic, optimizer, opt, sar):
    """One step of the critic on embeddings (B, D) of the two modalities; the model gets no gradient.

    Returns the critic's loss before the step.
    """
    loss = critic.critic_loss(opt.detach(), sar.detach())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    critic.constrain()
    return loss.detach()


def _perceptron(dim, outputs):
    return nn.Sequential(nn.Linear(dim, 512), nn.LeakyReLU(0.2),
                         nn.Linear(512, 512), nn.LeakyReLU(0.2),
                         nn.Linear(512, outputs))
