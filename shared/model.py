"""The pseudo-siamese ResNet: the first stages once for each modality, the rest shared."""
import copy

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from shared.errors import InputError
from shared.files import load_tensors
from shared.small_maps import use_small_map_convolutions

ARCHS = ("resnet18", "resnet34", "resnet50")
POOLINGS = ("max", "avg", "grid")
GRID = 3
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PseudoSiamese(nn.Module):
    """A ResNet in five stages, of which the first `specify_num` exist once for each modality.

    arch: resnet18, resnet34 or resnet50. specify_num: 0 (all shared) to 5 (nothing but the embedding
    is shared). normalize: subtract ImageNet's mean and divide by its standard deviation first.
    Both copies of a stage start from the same weights. layer4_stride: 1 keeps its resolution, 2 is torchvision's.
    pooling: what makes the POOL5 vector of layer4's maps. max and avg: over the whole image. grid: the average in
    each cell of a 3 x 3 grid, one after the other, then the maximum of the whole, so that the vector knows where
    things are: both images of a pair show the same ground, and the layout is a part of what tells a place.
    """

    def __init__(self, arch="resnet50", specify_num=0, embedding_dim=512, normalize=True, pooling="max", layer4_stride=1):
        super().__init__()
        if arch not in ARCHS:
            raise ValueError(f"arch {arch!r}: choose one of {', '.join(ARCHS)}")
        if not 0 <= specify_num <= 5:
            raise ValueError(f"specify_num {specify_num}: choose 0 to 5")
        if pooling not in POOLINGS:
            raise ValueError(f"pooling {pooling!r}: choose one of {', '.join(POOLINGS)}")
        self.settings = {"arch": arch, "specify_num": specify_num, "embedding_dim": embedding_dim, "normalize": normalize,
                         "pooling": pooling, "layer4_stride": layer4_stride}
        resnet = getattr(torchvision.models, arch)(weights=None)
        if layer4_stride == 1:
            _keep_resolution(resnet.layer4)
        for layer in (resnet.layer3, resnet.layer4):
            use_small_map_convolutions(layer)
        stages = _stages(resnet)
        self.opt_stages = nn.ModuleList(stages[:specify_num])
        self.sar_stages = copy.deepcopy(self.opt_stages)
        self.shared_stages = nn.ModuleList(stages[specify_num:])
        self.pool5_dim = resnet.fc.in_features * (GRID ** 2 + 1 if pooling == "grid" else 1)
        self.embedding = nn.Sequential(nn.Linear(self.pool5_dim, embedding_dim, bias=False), nn.BatchNorm1d(embedding_dim))
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if normalize else ((0.0,) * 3, (1.0,) * 3)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, opt=None, sar=None):
        """Embed optical images, SAR images or both.

        opt: (B, 3, H, W), sar: (C, 3, H, W), float32 in [0, 1]; either may be left out.
        Returns pool5 (B + C, 2048 for resnet50, else 512; ten times as many with the grid) and fc (B + C, 512),
        float32, L2-normalised, the optical rows first.
        """
        features = []
        for images, stages in ((opt, self.opt_stages), (sar, self.sar_stages)):
            if images is not None:
                x = (images - self.mean) / self.std
                x = x.contiguous(memory_format=torch.channels_last)
                for stage in stages:
                    x = stage(x)
                features.append(x)
        x = torch.cat(features)                                       # (B + C) x c x h x w
        for stage in self.shared_stages:
            x = stage(x)
        pool5 = self.pool(x)                                          # (B + C) x 2048
        fc = self.embedding(pool5)                                    # (B + C) x 512
        return F.normalize(pool5.float()), F.normalize(fc.float())

    def pool(self, x):
        """Maps (B, c, h, w) to vectors: (B, c), or with the grid (B, 10c)."""
        if self.settings["pooling"] == "max":
            return x.amax((2, 3))
        if self.settings["pooling"] == "avg":
            return x.mean((2, 3))
        return torch.cat([F.adaptive_avg_pool2d(x, GRID).flatten(1), x.amax((2, 3))], 1)

    def backbone_parameters(self):
        """All but the embedding's parameters."""
        return [p for name, p in self.named_parameters() if not name.startswith("embedding.")]


def initialize(model, init, arch):
    """Fill the backbone, both copies of a stage alike: `imagenet`, `none`, or the path of a state dict.

    The state dict is a torchvision ResNet's (its fc.* entries are left out), read with weights_only=True.
    Raises InputError where the weights cannot be had or belong to another architecture.
    """
    if init == "none":
        return
    if init == "imagenet":
        weights = torchvision.models.get_model_weights(arch).IMAGENET1K_V1
        try:
            state = weights.get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError) as error:
            raise InputError(f"the ImageNet weights of {arch} could not be downloaded ({error}): use --init none to train "
                             "from scratch, or --init FILE with a state dict that you have")
    else:
        state = load_tensors(init, "--init")
        if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise InputError(f"--init {init} is not a state dict (names to tensors)")
    resnet = getattr(torchvision.models, arch)(weights=None)
    state = {name: value for name, value in state.items() if not name.startswith("fc.")}
    wanted = {name: value for name, value in resnet.state_dict().items() if not name.startswith("fc.")}
    if state.keys() != wanted.keys() or any(state[name].shape != wanted[name].shape for name in wanted):
        raise InputError(f"--init {init} does not hold the weights of a torchvision {arch}: give the --arch it was made with")
    resnet.load_state_dict(state, strict=False)
    stages = _stages(resnet)
    specify_num = len(model.opt_stages)
    model.opt_stages.load_state_dict(nn.ModuleList(stages[:specify_num]).state_dict())
    model.sar_stages.load_state_dict(nn.ModuleList(stages[:specify_num]).state_dict())
    model.shared_stages.load_state_dict(nn.ModuleList(stages[specify_num:]).state_dict())


def _stages(resnet):
    first = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool)
    return [first, resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4]


def _keep_resolution(layer):
    for module in layer.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
