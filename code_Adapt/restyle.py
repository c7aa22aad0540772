"""The source's images in the target's colours and contrasts.

Source: Reinhard et al., "Color Transfer between Images", IEEE Computer Graphics and Applications 2001: means and
standard deviations of the channels; here those of RGB, not of the paper's decorrelated space.
"""


def restyle(images, others):
    """Give each image the mean and the standard deviation, channel by channel, of another one.

    images, others: (B, 3, S, S) float in [0, 1]; row i takes the style of row i. Returns the same shape, cut to [0, 1].
    """
    mean, deviation = _style(images)
    other_mean, other_deviation = _style(others)
    return ((images - mean) / deviation.clamp(min=1e-3) * other_deviation + other_mean).clamp(0, 1)


def _style(images):
    """Mean and standard deviation of each channel of each image, both (B, 3, 1, 1)."""
    return images.mean((2, 3), keepdim=True), images.std((2, 3), keepdim=True)
