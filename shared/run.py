"""A run and its folder: arguments, log, figures of each epoch, checkpoint, weights, metrics.

    args.json       the arguments              checkpoint.pt   all that is needed to go on; gone when the run is finished
    log.txt         what was printed           weights.pt      the finished model and how to build it
    epochs.csv      figures of each epoch      metrics.json    the last epoch's figures
                                               retrieval.json  what each query found

Whatever is written is written beside and then renamed. The same command again goes on where a run stopped.
"""
import io
import json
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from shared import distributed
from shared.dataset import describe_gallery, draw_batches, load_splits, steps_per_epoch
from shared.device import autocast, autocast_dtype, choose_device
from shared.errors import MEMORY_REMEDY, InputError
from shared.evaluate import FEATURES, embed_pairs, evaluate, format_metrics, retrievals
from shared.files import append_text, load_tensors, write_bytes, write_rows, write_tensors, write_text
from shared.model import PseudoSiamese, initialize

# What may differ between a run and its continuation: where it is, not what it is.
NOT_THE_RUN = ("result_path", "data_path", "device", "workers", "store", "compile", "fresh")

# A loss that passes the value of embeddings that are all alike on the way down does not stay there. Where each modality
# has collapsed to a point of its own it stands a little above.
STUCK_EPOCHS = 3


class Run:
    """The plumbing of one training run. See code/train.py for how it is used."""

    def __init__(self, args):
        if args.result_path is None:
            script = Path(sys.argv[0]).resolve().parent.name
            args.result_path = f"results/{Path(args.data_path).name}/{script}/seed{args.seed}"
        self.args = args
        self.folder = Path(args.result_path)
        self.device = distributed.start(choose_device(args.device))
        self.main = distributed.rank() == 0                           # logs, checkpoints and tables are its work alone
        dtype = autocast_dtype(args.amp, self.device)
        self.autocast = autocast(self.device, args.amp)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)
        self.generator = torch.Generator()                            # seeded anew at every step
        self.epoch, self.step, self.seconds = 0, 0, 0.0
        self.history, self.terms = [], []
        MEMORY_REMEDY[0] = f"--batch_size {args.batch_size // 2}"
        if self.main:
            self._open()
        distributed.wait()
        if (self.folder / "metrics.json").is_file():
            distributed.stop()
            sys.exit(0)
        torch.manual_seed(args.seed)
        self.log(f"{self.folder}: {self.device}" + (f" x {distributed.world_size()}" if distributed.world_size() > 1 else "")
                 + f", {str(dtype or torch.float32).removeprefix('torch.')}")

    # The folder ---------------------------------------------------------------------------------

    def _open(self):
        """Make the folder, or check that what it holds is this very run."""
        settings = {name: value for name, value in vars(self.args).items() if name not in NOT_THE_RUN}
        settings["data_set"] = Path(self.args.data_path).name
        file = self.folder / "args.json"
        if self.args.fresh and file.is_file():
            shutil.rmtree(self.folder)
        if file.is_file():
            theirs = json.loads(file.read_text())
            differing = [f"{name} {theirs.get(name)} there, {value} here" for name, value in settings.items() if theirs.get(name) != value]
            begun = any((self.folder / name).is_file() for name in ("checkpoint.pt", "weights.pt"))
            if differing and begun:
                raise InputError(f"{self.folder} holds a run with other arguments ({'; '.join(differing)}): "
                                 "give another --result_path, or --fresh to start over")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--result_path {self.folder} cannot be made ({error.strerror}): give another")
        write_text(file, json.dumps({**settings, "data_path": str(self.args.data_path)}, indent=1))
        if (self.folder / "metrics.json").is_file():
            metrics = json.loads((self.folder / "metrics.json").read_text())
            print(f"{self.folder} is finished (--fresh starts over):\n{format_metrics(metrics)}")

    def log(self, text):
        """Print, and keep in log.txt."""
        if self.main:
            print(text, flush=True)
            append_text(self.folder / "log.txt", text + "\n")

    def parallelize(self, model):
        """What the loop calls instead of the model: the same, compiled or shared among devices where that is asked for."""
        network = distributed.parallelize(model, self.device)
        return torch.compile(network) if self.args.compile else network

    # Going on ------------------------------------------------------------------------------------

    def resume(self, **parts):
        """Register what a checkpoint holds (modules, optimisers, schedules) and load the last one, if any."""
        self.parts = {**parts, "scaler": self.scaler}
        file = self.folder / "checkpoint.pt"
        if file.is_file():
            state = load_tensors(file, "checkpoint")
            try:
                for name, part in self.parts.items():
                    part.load_state_dict(state[name])
                torch.set_rng_state(state["random"])
                self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
                self.history, self.terms = state["history"], state["terms"]
            except (KeyError, TypeError, ValueError, RuntimeError) as error:
                raise InputError(f"{file} does not fit this run ({str(error).splitlines()[0]}): --fresh starts over")
            self.log(f"going on from epoch {self.epoch + 1}, step {self.step + 1}")
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop_soon)

    stopping = False

    def _stop_soon(self, number, frame):
        self.stopping = True
        signal.signal(number, signal.SIG_DFL)                         # a second one ends the run at once

    def save(self):
        if not self.main:
            return
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state.update(random=torch.get_rng_state(), epoch=self.epoch, step=self.step, seconds=self.seconds,
                     history=self.history, terms=self.terms)
        write_tensors(self.folder / "checkpoint.pt", state)

    # The loop --------------------------------------------------------------------------------------

    def epochs(self):
        """The epochs that are left, counted from 0."""
        while self.epoch < self.args.epochs:
            yield self.epoch

    def batches(self, pairs, epoch, order=None):
        """The batches that are left of an epoch; see draw_batches. Keeps time and step, and stops when asked to."""
        steps = steps_per_epoch(pairs, self.args.batch_size)
        bar = tqdm(total=steps, initial=self.step, desc=f"epoch {epoch + 1}/{self.args.epochs}", leave=False, disable=None if self.main else True)
        with bar:
            start = time.perf_counter()
            for batch in draw_batches(pairs, self.args.batch_size, self.args.seed, epoch, self.step, self.device, self.generator, order):
                yield batch
                self.step += 1
                self.seconds += time.perf_counter() - start
                start = time.perf_counter()
                bar.update()
                if distributed.any_process(self.stopping, self.device):
                    self._check_terms()
                    self.save()
                    self.log(f"stopped in epoch {epoch + 1} after step {self.step}; the same command goes on from here")
                    distributed.stop()
                    sys.exit(130)

    def record(self, **terms):
        """Keep the loss terms of this step (tensors; read at the epoch's end, so that no step waits for them)."""
        self.terms.append({name: value.detach() for name, value in terms.items()})

    def end_epoch(self, model, evaluation, lr, collapsed):
        """Write the epoch's figures and the checkpoint; evaluate where it is due.

        collapsed: {term: the value it has where all embeddings are alike}, to tell a collapse.
        """
        means = self._check_terms()
        self.epoch, self.step, self.terms = self.epoch + 1, 0, []
        row = {"epoch": self.epoch, "lr": lr, **means, "seconds": round(self.seconds, 1)}
        self.log(f"epoch {self.epoch}: " + " ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "epoch"))
        for name, level in collapsed.items():
            lately = [past[name] for past in [*self.history, row][-STUCK_EPOCHS:]]
            if len(lately) == STUCK_EPOCHS and all(0.98 * level < value < 1.1 * level for value in lately):
                self.log(f"the {name} loss has stood near {level:.4g} for {STUCK_EPOCHS} epochs, as where all embeddings are alike: "
                         "they have collapsed; try a lower --lr or --schedule cosine")
        if self.epoch % self.args.eval_every == 0 or self.epoch == self.args.epochs:
            embeddings = embed_pairs(model, evaluation, self.device, self.autocast)
            metrics = evaluate(*embeddings, evaluation, self.device)
            self.log(format_metrics(metrics))
            row.update({f"{feature}_{name}": value for feature in FEATURES for name, value in metrics[feature].items()})
        self.history.append(row)
        if self.main:
            columns = list(dict.fromkeys(name for row in self.history for name in row))
            write_rows(self.folder / "epochs.csv", columns, self.history)
        if self.epoch < self.args.epochs:
            self.save()
        elif self.main:
            self._finish(model, evaluation, metrics, retrievals(*embeddings, evaluation, self.device))
        if self.epoch == self.args.epochs:
            distributed.stop()

    def _check_terms(self):
        """The mean of each loss term so far; a term that is not finite ends the run."""
        if not self.terms:
            return {}
        names = list(self.terms[0])
        values = torch.stack([torch.stack([step[name].float() for name in names]) for step in self.terms]).cpu()
        bad = (~torch.isfinite(values)).nonzero()
        if len(bad):
            step, term = bad[0].tolist()
            raise InputError(f"the loss term {names[term]} is {values[step, term].item()} in epoch {self.epoch + 1}, step {step + 1}: "
                             f"try a lower --lr, or --amp off; the last good checkpoint in {self.folder} is untouched")
        return {name: value for name, value in zip(names, values.mean(0).tolist())}

    def _finish(self, model, evaluation, metrics, found):
        args = self.args
        write_tensors(self.folder / "weights.pt", {**model.settings, "img_size": args.img_size, "model": model.state_dict()})
        write_text(self.folder / "retrieval.json", json.dumps(found))
        write_text(self.folder / "metrics.json", summary(metrics, round(self.seconds, 1), evaluation, "validation" if args.validate else "test"))
        (self.folder / "checkpoint.pt").unlink(missing_ok=True)
        self.log(f"finished: {self.seconds:.0f} s of training, {self.folder}")


def summary(metrics, seconds, evaluation, evaluated_on):
    """The text of a metrics.json."""
    return json.dumps({**metrics, "seconds": seconds, "queries": len(evaluation.sar), "gallery": len(evaluation),
                       "distractors": evaluation.distractors, "evaluated_on": evaluated_on}, indent=1)


def build_model(args, device):
    """The network that the arguments name, filled and on the device."""
    model = PseudoSiamese(args.arch, args.specify_num, normalize=not args.no_normalize, pooling=args.pooling, layer4_stride=args.layer4_stride)
    initialize(model, args.init, args.arch)
    return model.to(device, memory_format=torch.channels_last)


def load_model(folder, device):
    """The model of a finished run and its image size. InputError where the folder holds none."""
    folder = Path(folder)
    if not (folder / "weights.pt").is_file():
        state = "an unfinished run: the command that began it goes on" if (folder / "args.json").is_file() else "no run"
        raise InputError(f"--run {folder} holds {state}")
    saved = load_tensors(folder / "weights.pt", "--run")
    try:
        state, img_size = saved.pop("model"), saved.pop("img_size")
        model = PseudoSiamese(**saved)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder / 'weights.pt'} is not what a run writes ({error!r})")
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError):
        raise InputError(f"{folder / 'weights.pt'} does not hold a {saved['arch']} with specify_num {saved['specify_num']}")
    return model.to(device, memory_format=torch.channels_last), img_size


def test_run(args):
    """What a test.py does: evaluate a finished run on a test split, print and keep the figures: in test.json, or as a row of the table."""
    row = args.result_path
    if row and (row / "metrics.json").is_file():
        print(f"{row} is finished:\n{format_metrics(json.loads((row / 'metrics.json').read_text()))}")
        return
    device = distributed.start(choose_device(args.device))
    main = distributed.rank() == 0
    model, img_size = load_model(args.run, device)
    if args.compile:
        model = torch.compile(model)
    settings = json.loads((args.run / "args.json").read_text())
    data_path = args.data_path or settings["data_path"]
    pairs, = load_splits(data_path, ("test",), img_size, args.workers, args.store)
    query, gallery = embed_pairs(model, pairs, device, autocast(device, args.amp), args.tta)
    if main:
        print(describe_gallery(pairs))
        metrics = evaluate(query, gallery, pairs, device)
        print(format_metrics(metrics))
        if row:
            seconds = json.loads((args.run / "metrics.json").read_text())["seconds"]
            row.mkdir(parents=True, exist_ok=True)
            write_text(row / "args.json", json.dumps({**settings, "data_path": str(data_path), "run": str(args.run), "tta": args.tta}, indent=1))
            write_text(row / "retrieval.json", json.dumps(retrievals(query, gallery, pairs, device)))
            write_text(row / "metrics.json", summary(metrics, seconds, pairs, "test"))
        else:
            write_text(args.run / "test.json", json.dumps({**metrics, "data_path": str(data_path), "tta": args.tta}, indent=1))
        if args.save_embeddings:
            save_embeddings(args.run / "embeddings", query, named_rows(pairs.sar_names, pairs.sar_place, pairs.positions), "sar")
            save_embeddings(args.run / "embeddings", gallery, named_rows(pairs.names, slice(None), pairs.positions), "opt")
    distributed.wait()
    distributed.stop()


def named_rows(names, places, positions):
    """[{"name", "x_m", "y_m"}], the positions where they are known. positions: (P, 2), or None."""
    if positions is None:
        return [{"name": name} for name in names]
    return [{"name": name, "x_m": x, "y_m": y} for name, (x, y) in zip(names, positions[places].tolist())]


def save_embeddings(folder, embeddings, rows, modality):
    """Write FC and POOL5 embeddings as folder/MODALITY_FC.npy and so on, (N, D) float32, and rows (name and more) as MODALITY.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    for feature, array in embeddings.items():
        content = io.BytesIO()
        np.save(content, array.numpy())
        write_bytes(folder / f"{modality}_{feature}.npy", content.getbuffer())
    write_rows(folder / f"{modality}.csv", list(dict.fromkeys(name for row in rows for name in row)), rows)
    print(f"{len(rows)} embeddings in {folder}/{modality}_*.npy")
