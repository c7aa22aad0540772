"""What a step, a filter and an evaluation cost, each as a ratio to something plain, the two sides alternating in one run.

    python tools/bench.py              every line, about ten minutes on two cores
    python tools/bench.py --only 1 3   some of them

1  a whole training step of each script, against forward + backward + step of the same network on tensors already in memory
2  mixed precision with channels_last against float32 without
3  the tensor guided filter on a batch of 48 x 3 x 200 x 200 against OpenCV's in a loop, tensors in and out of both
4  evaluation against a matrix product and a sort, and against a chunked matrix product for a gallery of a million
5  how the time of a step grows with batch size, image size and specify_num (no bound)
"""
import argparse
import contextlib
import os
import runpy
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import torch
import torchvision

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

from shared.device import autocast, choose_device
from shared.evaluate import GALLERY_AT_ONCE, QUERIES_AT_ONCE, retrieval_metrics
from shared.filters import guided_filter
from shared.model import PseudoSiamese
from shared.run import Run

ROOT = Path(__file__).resolve().parents[1]
DEVICE = choose_device("auto")
BATCH, SIZE = 48, 96


def seconds(function):
    synchronize()
    start = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - start


def synchronize():
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def alternate(ours, plain, rounds):
    """Median seconds of each, and the median of the ratios of neighbours, which a slow moment hits alike."""
    ours(), plain()
    pairs = [(seconds(ours), seconds(plain)) for _ in range(rounds)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), statistics.median(a / b for a, b in pairs)


def line(name, ours, plain, ratio, bound, faster=False):
    """Print one line; faster: the ratio is how many times faster ours is, and should be above the bound."""
    if faster:
        ratio = 1 / ratio
    kept = "" if bound is None else f"{'at least' if faster else 'at most'} {bound}: {'yes' if (ratio >= bound if faster else ratio <= bound) else 'NO'}"
    print(f"{name:62s} {1e3 * ours:10.1f} ms {1e3 * plain:10.1f} ms  {ratio:6.2f}  {kept}", flush=True)


def plain_step(network, optimizer, opt, sar):
    with autocast(DEVICE, "auto")():
        pool5, fc = network(opt, sar)
    optimizer.zero_grad()
    (pool5.sum() + fc.sum()).backward()
    optimizer.step()


def network_of(arch="resnet18", specify_num=0):
    network = PseudoSiamese(arch, specify_num).to(DEVICE, memory_format=torch.channels_last).train()
    return network, torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4)


def images_of(count, size=SIZE):
    return torch.rand(count, 3, size, size, device=DEVICE).contiguous(memory_format=torch.channels_last)


def script_step(script, flags, rounds):
    """Run a train.py as it is; between its steps, which are timed from batch to batch, the plain step is timed."""
    kinds = 2 if "--channel_exchange" in flags or "--guided_filter" in flags else 1
    network, optimizer = network_of()
    opt, sar = images_of(kinds * BATCH), images_of(kinds * BATCH)
    pairs, batches = [], Run.batches

    def timed_batches(run, *arguments):
        whole = batches(run, *arguments)
        while True:
            synchronize()
            start = time.perf_counter()
            batch = next(whole, None)
            if batch is None:
                return
            yield batch
            synchronize()
            ours = time.perf_counter() - start
            pairs.append((ours, seconds(lambda: plain_step(network, optimizer, opt, sar))))

    def no_end(run, *arguments, **named):
        run.epoch, run.step, run.terms = run.epoch + 1, 0, []

    with tempfile.TemporaryDirectory() as folder:
        for split, count in (("train", 2 * BATCH), ("test", 2)):
            for modality in ("opt", "sar"):
                (Path(folder) / "data" / split / modality).mkdir(parents=True)
                for i in range(count):
                    cv2.imwrite(f"{folder}/data/{split}/{modality}/{i}.png", np.random.default_rng(i).integers(0, 256, (SIZE, SIZE, 3), np.uint8))
        sys.argv = [str(ROOT / script), "--data_path", f"{folder}/data", "--result_path", f"{folder}/run", "--arch", "resnet18", "--img_size", str(SIZE),
                    "--init", "none", "--batch_size", str(BATCH), "--epochs", str(-(-rounds // 2) + 1), *flags]
        Run.batches, end_epoch, Run.end_epoch = timed_batches, Run.end_epoch, no_end
        try:
            with contextlib.redirect_stdout(open(os.devnull, "w")):
                runpy.run_path(sys.argv[0], run_name="__main__")
        finally:
            Run.batches, Run.end_epoch = batches, end_epoch
    pairs = pairs[2:]                                   # the first steps make their buffers
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), statistics.median(a / b for a, b in pairs)


def steps(rounds):
    for script, flags in (("code/train.py", []), ("code_Aux/train.py", ["--channel_exchange"]), ("code_Aux/train.py", ["--guided_filter", "--channel_exchange"]),
                          ("code_Adv/train.py", []), ("code_Adv/train.py", ["--channel_exchange"])):
        line(f"1 step of {script} {' '.join(flags)}", *script_step(script, flags, rounds), 1.10)


def precision(rounds):
    for arch, batch in (("resnet18", 96), ("resnet50", 48)):
        sides = []
        for channels_last, amp in ((True, "auto"), (False, "off")):
            network = getattr(torchvision.models, arch)().to(DEVICE).train()
            images = torch.rand(batch, 3, SIZE, SIZE, device=DEVICE)
            if channels_last:
                network, images = network.to(memory_format=torch.channels_last), images.contiguous(memory_format=torch.channels_last)
            optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

            def step(network=network, images=images, optimizer=optimizer, amp=amp):
                with autocast(DEVICE, amp)():
                    out = network(images)
                optimizer.zero_grad()
                out.float().sum().backward()
                optimizer.step()
            sides.append(step)
        line(f"2 {arch}, mixed precision and channels_last, {batch} images", *alternate(*sides, rounds), 1.8, faster=True)


def filters(rounds):
    images = torch.rand(48, 3, 200, 200, device=DEVICE)

    def opencv():
        out = []
        for image in images.cpu():
            image = image.permute(1, 2, 0).numpy() * 255
            out.append(torch.from_numpy(cv2.ximgproc.guidedFilter(image, image, 4, 0.36 * 255 ** 2)).permute(2, 0, 1) / 255)
        return torch.stack(out).to(DEVICE)

    line(f"3 guided filter, OpenCV with {cv2.getNumThreads()} threads", *alternate(lambda: guided_filter(images, images), opencv, 3 * rounds), 1.0)


def unit_rows(count, dim=512):
    rows = torch.empty(count, dim)
    for i in range(0, count, 10_000):                   # in portions, so that making them does not count as memory
        rows[i:i + 10_000] = torch.nn.functional.normalize(torch.randn(len(rows[i:i + 10_000]), dim))
    return rows


def evaluation(rounds):
    query, gallery, ids = unit_rows(2250).to(DEVICE), unit_rows(2250).to(DEVICE), torch.arange(2250, device=DEVICE)
    line("4 evaluation, 2,250 by 2,250", *alternate(lambda: retrieval_metrics(query, gallery, ids, ids), lambda: (query @ gallery.T).sort(1, descending=True), rounds), 1.0)

    query, gallery = unit_rows(10_000), unit_rows(1_000_000)
    query_ids, gallery_ids = torch.arange(10_000) * 100, torch.arange(1_000_000)
    buffer = torch.empty(QUERIES_AT_ONCE, GALLERY_AT_ONCE)

    def products():
        for j in range(0, len(gallery), GALLERY_AT_ONCE):
            portion = gallery[j:j + GALLERY_AT_ONCE].T
            for i in range(0, len(query), QUERIES_AT_ONCE):
                rows = query[i:i + QUERIES_AT_ONCE]
                torch.matmul(rows, portion, out=buffer.view(-1)[:len(rows) * portion.shape[1]].view(len(rows), -1))

    pairs, above = [], 0
    for _ in range(2):
        ours, more = peak_memory(lambda: retrieval_metrics(query, gallery, query_ids, gallery_ids))
        above = max(above, more)
        pairs.append((ours, seconds(products)))
    line("4 evaluation, 10,000 by 1,000,000", *(statistics.mean(side) for side in zip(*pairs)), statistics.mean(a / b for a, b in pairs), 1.3)
    print(f"  peak memory above the embeddings: {above / 2 ** 20:.0f} MiB, at most 1024: {'yes' if above < 2 ** 30 else 'NO'}", flush=True)


def peak_memory(function):
    """(seconds, bytes resident at most above what was resident before), sampled a hundred times a second (Linux)."""
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def sample():
        while not done.wait(0.01):
            levels.append(resident())

    levels, done = [resident()], threading.Event()
    watcher = threading.Thread(target=sample)
    watcher.start()
    took = seconds(function)
    done.set()
    watcher.join()
    return took, max(levels) - levels[0]


def growth(rounds):
    print(f"5 step of a resnet18 in ms: {'batch':>8s} {'size':>6s} {'specify_num':>12s} {'ms':>8s} {'pairs/s':>8s}")
    for batch, size, specify_num in ((12, 96, 0), (24, 96, 0), (48, 96, 0), (96, 96, 0), (24, 64, 0), (24, 128, 0), (24, 200, 0), (48, 96, 1), (48, 96, 3), (48, 96, 5)):
        network, optimizer = network_of(specify_num=specify_num)
        opt, sar = images_of(batch, size), images_of(batch, size)
        plain_step(network, optimizer, opt, sar)
        took = statistics.median(seconds(lambda: plain_step(network, optimizer, opt, sar)) for _ in range(max(3, rounds // 2)))
        print(f"{'':27s} {batch:8d} {size:6d} {specify_num:12d} {1e3 * took:8.0f} {batch / took:8.1f}", flush=True)


PARTS = {1: steps, 2: precision, 3: filters, 4: evaluation, 5: growth}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=10, help="how often the two sides alternate")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {DEVICE}, {torch.get_num_threads()} threads; {autocast(DEVICE, 'auto').keywords['dtype']}")
    print(f"{'':62s} {'ours':>13s} {'plain':>13s}   ratio")
    for number in args.only:
        PARTS[number](args.rounds)


if __name__ == "__main__":
    main()
