"""Several processes, one for each device, started by torchrun. In a single process all of this does nothing."""
import os

import torch
import torch.distributed as dist


def start(device):
    """Join the others that torchrun started, if any; returns this process's device. NCCL on CUDA, gloo on the CPU."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    return dist.get_world_size() if dist.is_initialized() else 1


def parallelize(model, device):
    """Share the gradients: DistributedDataParallel, with SyncBatchNorm on CUDA."""
    if world_size() == 1:
        return model
    if device.type == "cuda":
        from timm.layers import convert_sync_batchnorm                # torch's own loses what timm's activate, too
        model = convert_sync_batchnorm(model)
    device_ids = [device.index] if device.type == "cuda" else None
    return torch.nn.parallel.DistributedDataParallel(model, device_ids=device_ids)


@torch.no_grad()
def average_batchnorm(model):
    """Give every process the mean of all processes' BatchNorm averages: on a CPU each keeps those of its own share."""
    if world_size() == 1:
        return
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            for average in (module.running_mean, module.running_var):
                dist.all_reduce(average)
                average /= world_size()


def gather(fc, kinds):
    """The embeddings of the global batch, with their gradients: the hardest negative may be on another device.

    fc: (kinds x B, D) of this process, kind after kind. Returns (kinds x B x processes, D), kind after kind.
    The gradient that comes back is summed over the processes, each of which computes the whole loss, and
    DistributedDataParallel's mean over them makes that the gradient of the one loss.
    """
    if world_size() == 1:
        return fc
    parts = _AllGather.apply(fc.contiguous())                         # processes x (kinds x B) x D
    return torch.cat([part.view(kinds, -1, fc.shape[1]) for part in parts], 1).flatten(0, 1)


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(context, tensor):
        parts = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(parts, tensor)
        return torch.stack(parts)

    @staticmethod
    def backward(context, gradient):
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[rank()]


def share(count):
    """The slice of `count` things that falls to this process: consecutive, as even as can be."""
    here, all_of_them = rank(), world_size()
    return slice(count * here // all_of_them, count * (here + 1) // all_of_them)


def gather_shares(features, device):
    """Join what each process computed of its share: (n, D) each -> (N, D) in order, on every process."""
    if world_size() == 1:
        return features
    counts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(features)], device=device))
    most = max(int(count) for count in counts)
    padded = torch.zeros(most, features.shape[1], dtype=features.dtype, device=device)
    padded[:len(features)] = features
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:int(count)] for part, count in zip(parts, counts)]).to(features.device)


def any_process(flag, device):
    """Whether the flag is set in any process."""
    if world_size() == 1:
        return flag
    value = torch.tensor([int(flag)], device=device)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return bool(value)


def wait():
    """Until all have come this far."""
    if world_size() > 1:
        dist.barrier()


def stop():
    """Leave the others."""
    if dist.is_initialized():
        dist.destroy_process_group()
