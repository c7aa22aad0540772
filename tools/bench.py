"""What a step, a filter and an evaluation cost, each as a ratio to something plain, the two sides alternating.

    python tools/bench.py              every line, about ten minutes on two cores
    python tools/bench.py --only 1 3   some of them

1  a whole training step of each script, against forward + backward + step of the same network on tensors in memory
2  mixed precision with channels_last against float32 without
3  the tensor guided filter on a batch of 48 x 3 x 200 x 200 against OpenCV's in a loop, tensors in and out of both
4  evaluation against a matrix product and a sort, and against a chunked matrix product for a gallery of a million
5  how the time of a step grows with batch size, image size and specify_num (no bound)
6  a training step of code_Con that sees structure beside the image (--input both) against one that does not
7  a training step of a network of depthwise convolutions against the same in float32, in bf16 throughout, and in memory
   that is not channels_last; fewer stages against all five (no bound)
"""
import argparse
import contextlib
import importlib.util
import os
import statistics
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
import torchvision

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

from shared import options
from shared.evaluate import GALLERY_AT_ONCE, QUERIES_AT_ONCE, retrieval_metrics
from shared.filters import guided_filter
from shared.model import PseudoSiamese
from shared.plumbing.depthwise import use_float32_depthwise
from shared.plumbing.device import autocast, choose_device
from shared.plumbing.small_maps import use_small_map_convolutions
from shared.run import Run
from shared.views import with_shown

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
    return medians([(seconds(ours), seconds(plain)) for _ in range(rounds)])


def medians(pairs):
    """Of pairs (ours, plain) in seconds: the median of each side, and of their ratios."""
    ours, plain = zip(*pairs)
    return statistics.median(ours), statistics.median(plain), statistics.median(a / b for a, b in pairs)


def line(name, ours, plain, ratio, at_most=None, at_least=None):
    """Print one line. at_most: bound of the ratio ours / plain. at_least: of plain / ours, how many times faster."""
    if at_least:
        ratio = 1 / ratio
        verdict = f"at least {at_least}: {'yes' if ratio >= at_least else 'NO'}"
    else:
        verdict = f"at most {at_most}: {'yes' if ratio <= at_most else 'NO'}"
    print(f"{name:62s} {1e3 * ours:10.1f} ms {1e3 * plain:10.1f} ms  {ratio:6.2f}  {verdict}", flush=True)


def plain_step(network, optimizer, opt, sar, amp="auto"):
    with autocast(DEVICE, amp)():
        embedded = network(opt, sar)
    optimizer.zero_grad()
    (embedded.pool5.sum() + embedded.fc.sum()).backward()
    optimizer.step()


def network_of(arch="resnet18", specify_num=0):
    network = PseudoSiamese(arch, specify_num)
    use_small_map_convolutions(network)
    network.to(DEVICE, memory_format=torch.channels_last).train()
    return network, torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4)


def images_of(count, size=SIZE):
    return torch.rand(count, 3, size, size, device=DEVICE).contiguous(memory_format=torch.channels_last)


def script_step(script, flags, rounds):
    """Run a train.py as it is; between its steps, which are timed from batch to batch, the plain step is timed."""
    is_auxiliary = "--channel_exchange" in flags or "--guided_filter" in flags
    count = 2 * BATCH if is_auxiliary else BATCH
    network, optimizer = network_of()
    opt, sar = images_of(count), images_of(count)
    pairs = []

    class TimedRun(Run):
        """A run that notes the time of its steps, and neither evaluates nor writes at the end of an epoch."""

        def batches(self, *arguments):
            whole = super().batches(*arguments)
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

        def end_epoch(self, *arguments, **named):
            self.epoch, self.step, self.terms = self.epoch + 1, 0, []

    with tempfile.TemporaryDirectory() as folder:
        write_noise(Path(folder) / "data", {"train": 2 * BATCH, "test": 2})
        epochs = -(-rounds // 2) + 1
        settings = {"data_path": f"{folder}/data", "result_path": f"{folder}/run", "arch": "resnet18",
                    "img_size": SIZE, "init": "none", "batch_size": BATCH, "epochs": epochs}
        sys.argv = [script, *options.as_flags(settings).split(), *flags]
        method = load_script(ROOT / script)
        method.Run = TimedRun
        with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
            method.train(method.arguments())
    return medians(pairs[2:])                           # the first steps make their buffers


def load_script(file):
    """A train.py as a module; its own folder comes first on the path, as when it is run."""
    sys.path.insert(0, str(file.parent))
    spec = importlib.util.spec_from_file_location(f"{file.parent.name}_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(file.parent))
    return module


def write_noise(folder, counts):
    """Pairs of random images. counts: {split: number of places}."""
    for split, count in counts.items():
        for modality in ("opt", "sar"):
            (folder / split / modality).mkdir(parents=True)
            for i in range(count):
                image = np.random.default_rng(i).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
                cv2.imwrite(str(folder / split / modality / f"{i}.png"), image)


def steps(rounds):
    for script, flags in (("code/train.py", []),
                          ("code_Aux/train.py", ["--channel_exchange"]),
                          ("code_Aux/train.py", ["--guided_filter", "--channel_exchange"]),
                          ("code_Adv/train.py", []),
                          ("code_Adv/train.py", ["--channel_exchange"])):
        line(f"1 step of {script} {' '.join(flags)}", *script_step(script, flags, rounds), at_most=1.10)


def precision(rounds):
    for arch, batch in (("resnet18", 96), ("resnet50", 48)):
        sides = []
        for channels_last, amp in ((True, "auto"), (False, "off")):
            network = getattr(torchvision.models, arch)().to(DEVICE).train()
            images = torch.rand(batch, 3, SIZE, SIZE, device=DEVICE)
            if channels_last:
                network = network.to(memory_format=torch.channels_last)
                images = images.contiguous(memory_format=torch.channels_last)
            optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

            def step(network=network, images=images, optimizer=optimizer, amp=amp):
                with autocast(DEVICE, amp)():
                    out = network(images)
                optimizer.zero_grad()
                out.float().sum().backward()
                optimizer.step()
            sides.append(step)
        name = f"2 {arch}, mixed precision and channels_last, {batch} images"
        line(name, *alternate(*sides, rounds), at_least=1.8)


def filters(rounds):
    images = torch.rand(48, 3, 200, 200, device=DEVICE)

    def opencv():
        out = []
        for image in images.cpu():
            image = image.permute(1, 2, 0).numpy() * 255
            filtered = cv2.ximgproc.guidedFilter(image, image, 4, 0.36 * 255 ** 2)
            out.append(torch.from_numpy(filtered).permute(2, 0, 1) / 255)
        return torch.stack(out).to(DEVICE)

    def ours():
        return guided_filter(images, images)

    line(f"3 guided filter, OpenCV with {cv2.getNumThreads()} threads", *alternate(ours, opencv, 3 * rounds),
         at_most=1.0)


def unit_rows(count, dim=512):
    rows = torch.empty(count, dim)
    for i in range(0, count, 10_000):                   # in portions, so that making them does not count as memory
        rows[i:i + 10_000] = torch.nn.functional.normalize(torch.randn(len(rows[i:i + 10_000]), dim))
    return rows


def evaluation(rounds):
    query, gallery, ids = unit_rows(2250).to(DEVICE), unit_rows(2250).to(DEVICE), torch.arange(2250, device=DEVICE)

    def ours():
        return retrieval_metrics(query, gallery, ids, ids)

    def plain():
        return (query @ gallery.T).sort(1, descending=True)

    line("4 evaluation, 2,250 by 2,250", *alternate(ours, plain, rounds), at_most=1.0)

    query, gallery = unit_rows(10_000), unit_rows(1_000_000)
    query_ids, gallery_ids = torch.arange(10_000) * 100, torch.arange(1_000_000)
    buffer = torch.empty(QUERIES_AT_ONCE, GALLERY_AT_ONCE)

    def products():
        for j in range(0, len(gallery), GALLERY_AT_ONCE):
            portion = gallery[j:j + GALLERY_AT_ONCE].T
            for i in range(0, len(query), QUERIES_AT_ONCE):
                rows = query[i:i + QUERIES_AT_ONCE]
                block = buffer.view(-1)[:len(rows) * portion.shape[1]]
                torch.matmul(rows, portion, out=block.view(len(rows), -1))

    pairs, above = [], 0
    for _ in range(2):
        took, more = peak_memory(lambda: retrieval_metrics(query, gallery, query_ids, gallery_ids))
        above = max(above, more)
        pairs.append((took, seconds(products)))
    line("4 evaluation, 10,000 by 1,000,000", *medians(pairs), at_most=1.3)
    verdict = "yes" if above < 2 ** 30 else "NO"
    print(f"  peak memory above the embeddings: {above / 2 ** 20:.0f} MiB, at most 1024: {verdict}", flush=True)


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
    for batch, size, specify_num in ((12, 96, 0), (24, 96, 0), (48, 96, 0), (96, 96, 0),
                                     (24, 64, 0), (24, 128, 0), (24, 200, 0),
                                     (48, 96, 1), (48, 96, 3), (48, 96, 5)):
        network, optimizer = network_of(specify_num=specify_num)
        opt, sar = images_of(batch, size), images_of(batch, size)
        plain_step(network, optimizer, opt, sar)
        times = [seconds(partial(plain_step, network, optimizer, opt, sar)) for _ in range(max(3, rounds // 2))]
        took = statistics.median(times)
        print(f"{'':27s} {batch:8d} {size:6d} {specify_num:12d} {1e3 * took:8.0f} {batch / took:8.1f}", flush=True)


def seen_structure(rounds):
    opt, sar = images_of(64, 64), images_of(64, 64)
    generator = torch.Generator().manual_seed(0)

    def step_of(arch, kind):
        network = PseudoSiamese(arch, 1, pooling="cells", layer4_stride=2, stages=3, input=kind)
        use_small_map_convolutions(network)
        use_float32_depthwise(network)
        network.to(DEVICE, memory_format=torch.channels_last).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)

        def step():
            images = (opt, sar)
            if kind == "both":
                images = [with_shown(part, network.mean, 1 / 3, 1 / 3, generator) for part in images]
            plain_step(network, optimizer, *images)
        return step

    for arch in ("resnet18", "timm:tf_efficientnet_lite0"):
        both, rgb = (step_of(arch, kind) for kind in ("both", "rgb"))
        line(f"6 {arch.removeprefix('timm:')}, --input both, 64 pairs of 64 px", *alternate(both, rgb, 3 * rounds),
             at_most=1.2)


def depthwise(rounds):
    def step_of(as_trained=True, amp="auto", memory_format=torch.channels_last, stages=5):
        network = PseudoSiamese("timm:tf_efficientnet_lite0", layer4_stride=2, stages=stages)
        if as_trained:
            use_float32_depthwise(network)
        network.to(DEVICE, memory_format=memory_format).train()
        # PseudoSiamese itself makes its input channels_last.
        if memory_format == torch.contiguous_format:
            network.stages_of("opt")[0].register_forward_pre_hook(lambda module, inputs: inputs[0].contiguous())
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
        return lambda: plain_step(network, optimizer, opt, sar, amp)

    opt, sar = images_of(BATCH // 2), images_of(BATCH // 2)
    for name, plain in (("against float32", step_of(amp="off")),
                        ("against bf16 throughout", step_of(as_trained=False)),
                        ("against contiguous memory", step_of(memory_format=torch.contiguous_format))):
        line(f"7 lite0, {BATCH} images, {name}", *alternate(step_of(), plain, rounds), at_least=1.2)
    for stages in (4, 3):
        ours, plain, ratio = alternate(step_of(stages=stages), step_of(), rounds)
        name = f"7 lite0, {stages} stages against 5"
        print(f"{name:62s} {1e3 * ours:10.1f} ms {1e3 * plain:10.1f} ms  {ratio:6.2f}", flush=True)


PARTS = {1: steps, 2: precision, 3: filters, 4: evaluation, 5: growth, 6: seen_structure, 7: depthwise}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=options.positive, default=10, help="how often the two sides alternate")
    return parser.parse_args()


def main(args):
    precision_of_auto = autocast(DEVICE, "auto").keywords["dtype"]
    print(f"torch {torch.__version__}, {DEVICE}, {torch.get_num_threads()} threads; {precision_of_auto}")
    print(f"{'':62s} {'ours':>13s} {'plain':>13s}   ratio")
    for number in args.only:
        PARTS[number](args.rounds)


if __name__ == "__main__":
    main(arguments())
