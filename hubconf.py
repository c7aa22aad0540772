"""torch.hub's way in: retriever = torch.hub.load("CLONE", "optical_sar", source="local"), the folder of a clone."""
try:
    from shared.plumbing.packed import SHIPPED
    from shared.mapping.retriever import Retriever
except ModuleNotFoundError as error:
    if not error.name.startswith("shared"):
        raise
    raise ImportError("another module called shared is imported already: load optical_sar before it") from error

dependencies = ["torch", "torchvision", "timm", "numpy", "PIL", "cv2", "rasterio", "pyproj", "sklearn", "tqdm"]


def optical_sar(run=SHIPPED, device="auto", amp="auto"):
    """The Retriever of shared/mapping/retriever.py: embed(images, "sar" or "opt"), search(query, gallery, k),
    locate(query, map).

    run: the folder of a finished run, or a packed file (default: the network that comes with the repository).
    """
    return Retriever(run, device, amp)
