"""A diffusion model that draws an image of a place in one modality, given the place's image in the other.

Sources: Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020; the cosine schedule: Nichol and Dhariwal,
"Improved Denoising Diffusion Probabilistic Models", ICML 2021; sampling: Song et al., "Denoising Diffusion Implicit
Models" (DDIM), ICLR 2021. U-Net and scheduler are those of the library diffusers.
"""
import torch
import torch.nn.functional as F
from torch import nn

from shared.plumbing.errors import InputError, installation

MODALITIES = ("opt", "sar")
TRAINING_STEPS = 1000                                   # of noise


class Denoiser(nn.Module):
    """A U-Net that tells the noise in an image, by the clean image of the other modality beside it.

    channels: of its stages, each half as large as the one before; the last has self-attention.
    """

    def __init__(self, channels=(32, 64, 96, 128)):
        super().__init__()
        self.settings = {"channels": list(channels)}
        plain = len(channels) - 1
        self.unet = _library().UNet2DModel(
            in_channels=6, out_channels=3, layers_per_block=1, block_out_channels=tuple(channels),
            down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * plain,
            norm_num_groups=8, attention_head_dim=32, num_class_embeds=len(MODALITIES))

    def forward(self, noisy, condition, times, modality):
        """The noise in images (B, 3, S, S) at times (B) int64. condition: (B, 3, S, S), the other modality's images.

        Both in [-1, 1] but for the noise; modality: (B) int64, what is drawn, 0 optical, 1 SAR. S is a multiple of 8.
        """
        return self.unet(torch.cat([noisy, condition], 1), times, class_labels=modality).sample.float()


def build_scheduler():
    """DDIM's on the cosine schedule."""
    return _library().DDIMScheduler(num_train_timesteps=TRAINING_STEPS, beta_schedule="squaredcos_cap_v2",
                                    timestep_spacing="trailing")


def noise_loss(network, scheduler, images, condition, modality, generator):
    """Mean squared error of the noise that is told (Ho et al., equation 14).

    images, condition: (B, 3, S, S) float32 in [0, 1]. generator: a torch.Generator on the CPU, of noise and times.
    """
    noise = torch.randn(images.shape, generator=generator).to(images)
    times = torch.randint(TRAINING_STEPS, (len(images),), generator=generator).to(images.device)
    noisy = scheduler.add_noise(2 * images - 1, noise, times)
    return F.mse_loss(network(noisy, 2 * condition - 1, times, modality), noise)


@torch.no_grad()
def sample(network, scheduler, condition, modality, steps, generator):
    """Draw images from noise in `steps` steps of DDIM, without new noise on the way (eta 0).

    condition: (B, 3, S, S) float32 in [0, 1]. generator: a torch.Generator on the CPU. Returns the same shape, in the
    same range.
    """
    images = torch.randn(condition.shape, generator=generator).to(condition)
    scheduler.set_timesteps(steps)
    for time in scheduler.timesteps:
        times = torch.full((len(images),), int(time), device=images.device)
        noise = network(images, 2 * condition - 1, times, modality)
        images = scheduler.step(noise, time, images).prev_sample
    return ((images + 1) / 2).clamp(0, 1)


def _library():
    try:
        import diffusers
    except ImportError:
        raise InputError(f"the U-Net and its scheduler are those of diffusers: {installation()}")
    return diffusers
