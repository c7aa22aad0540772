# For every train.py: seeds, epochs, logs, checkpoints.
"""A run and its folder: arguments, log, figures of each epoch, checkpoint, weights, metrics.

    args.json       the arguments              checkpoint.pt   all that is needed to go on; gone when it is finished
    log.txt         what was printed           weights.pt      the finished model and how to build it
    epochs.csv      figures of each epoch      metrics.json    the last epoch's figures
    reading.json    how the images were read   retrieval.json  what each query found

Whatever is written is written beside and then renamed. The same command again goes on where a run stopped.
"""
import json
import shutil
import signal
import time
from pathlib import Path

import torch
from tqdm import tqdm

from shared.dataset import draw_batches, steps_per_epoch, to_float
from shared.evaluate import embed_pairs, evaluate, retrievals, search
from shared.plumbing import distributed
from shared.plumbing.device import autocast, autocast_dtype, choose_device
from shared.plumbing.errors import InputError, Interrupted
from shared.plumbing.files import append_text, load_tensors, state_on_cpu, write_rows, write_tensors, write_text
from shared.plumbing.run_files import features_of, format_metrics
from shared.reading.fingerprint import differing_data, fingerprints, has_begun
from shared.reading.readers import READING, save_readers

# What may differ between a run and its continuation: where it is and how it was asked for, not what it is. Where the
# data lie may differ, too; what they are is told by their fingerprint.
NOT_THE_RUN = ("result_path", "device", "workers", "store", "compile", "fresh", "recipe", "defaults", "eval_every")

# A loss that passes the value of embeddings that are all alike on the way down seldom stays there. Where each modality
# has collapsed to a point of its own it stands a little above.
STUCK_EPOCHS = 3


class Run:
    """The plumbing of one training run. See code/train.py for how it is used.

    args: as a TrainingParser gives them. script: the train.py's __file__, whose folder names the run where
    --result_path does not. Seeds torch with --seed. `finished` says that there is nothing left to do.
    """

    def __init__(self, args, script):
        method = Path(script).resolve().parent.name
        default = f"results/{Path(args.data_path).name}/{method}/seed{args.seed}"
        self.args = args
        self.folder = Path(args.result_path or default)
        self.device = distributed.start(choose_device(args.device))
        self.is_first_process = distributed.rank() == 0               # logs, checkpoints and tables are its work alone
        dtype = autocast_dtype(args.amp, self.device)
        self.autocast = autocast(self.device, args.amp)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)
        self.generator = torch.Generator()                            # seeded anew at every step
        self.epoch, self.step, self.seconds = 0, 0, 0.0
        self.history, self.terms = [], []
        if self.is_first_process:
            self._open()
        distributed.wait()
        self.finished = (self.folder / "metrics.json").is_file()
        if self.finished:
            distributed.stop()
            return
        torch.manual_seed(args.seed)
        processes = f" x {distributed.world_size()}" if distributed.world_size() > 1 else ""
        self.log(f"{self.folder}: {self.device}{processes}, {str(dtype or torch.float32).removeprefix('torch.')}")

    # The folder ---------------------------------------------------------------------------------

    def _open(self):
        """Make the folder, or check that what it holds is this very run."""
        file = self.folder / "args.json"
        settings = {name: value for name, value in vars(self.args).items() if name not in NOT_THE_RUN}
        settings["data_path"] = str(self.args.data_path)
        settings["data"] = fingerprints(self.args.data_path, settings.get("target_path"), settings.get("validate"))
        if self.args.fresh and file.is_file():
            shutil.rmtree(self.folder)
        theirs = json.loads(file.read_text()) if file.is_file() else {}
        self._check_settings(settings, theirs)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--result_path {self.folder} cannot be made ({error.strerror}): give another")
        finished = (self.folder / "metrics.json").is_file()
        if not finished or theirs.get("data") == settings["data"]:    # a finished run goes on naming the data it saw
            write_text(file, json.dumps(settings, indent=1))
        if finished:
            metrics = json.loads((self.folder / "metrics.json").read_text())
            print(f"{self.folder} is finished (--fresh starts over)\n{format_metrics(metrics)}".rstrip())

    def _check_settings(self, ours, theirs):
        """InputError where the folder's run was begun with other arguments, or on other data.

        A flag that it did not know had its default. A run of before there were fingerprints has its data set's name.
        """
        if not has_begun(self.folder):
            return
        if "data" in theirs:
            differing, same = differing_data(ours, theirs), ("data", "data_path", "target_path")
        else:
            differing, same = [], ("data", "data_path")
            ours = {**ours, "data_set": Path(self.args.data_path).name}
        for name in ours.keys() - set(same):
            there = theirs.get(name, self.args.defaults.get(name))
            if there != ours[name]:
                differing.append(f"{name} {there} there, {ours[name]} here")
        if differing:
            raise InputError(f"{self.folder} holds a run with other arguments ({'; '.join(sorted(differing))}): "
                             "give another --result_path, or --fresh to start over")

    def log(self, text):
        """Print, and keep in log.txt."""
        if self.is_first_process:
            print(text, flush=True)
            append_text(self.folder / "log.txt", text + "\n")

    def parallelize(self, model):
        """What the loop calls instead of the model: the same, compiled, or shared among devices, where asked for."""
        network = distributed.parallelize(model, self.device)
        return torch.compile(network) if self.args.compile else network

    # Going on ------------------------------------------------------------------------------------

    def resume(self, **parts):
        """Register what a checkpoint holds, and load the last one, if any.

        parts: modules (of the method's own, too; they are moved to the device), optimisers, schedules: whatever has
        state_dict() and load_state_dict().
        """
        for part in parts.values():
            if isinstance(part, torch.nn.Module):
                part.to(self.device)
        self.parts = {**parts, "scaler": self.scaler}
        file = self.folder / "checkpoint.pt"
        if file.is_file():
            state = load_tensors(file, "checkpoint")
            try:
                for name, part in self.parts.items():
                    part.load_state_dict(state[name])
                torch.set_rng_state(state["random"])
                self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
                self.history = state["history"]
                self.terms = [{name: value.to(self.device) for name, value in step.items()} for step in state["terms"]]
            except (KeyError, TypeError, ValueError, RuntimeError) as error:
                reason = str(error).splitlines()[0]
                raise InputError(f"{file} does not fit this run ({reason}): --fresh starts over")
            self.log(f"going on from epoch {self.epoch + 1}, step {self.step + 1}")
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop_soon)

    stopping = False

    def _stop_soon(self, number, frame):
        self.stopping = True
        signal.signal(number, signal.SIG_DFL)                         # a second one ends the run at once

    def save(self):
        if not self.is_first_process:
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
        """The batches (opt, sar, places) that are left of an epoch; see draw_batches.

        Keeps time and step, and stops when asked to.
        """
        args = self.args
        if self.is_first_process and not (self.folder / READING).is_file():
            save_readers(self.folder, pairs.readers, pairs.tones)
        bar = tqdm(total=steps_per_epoch(pairs, args.batch_size), initial=self.step,
                   desc=f"epoch {epoch + 1}/{args.epochs}", leave=False,
                   disable=None if self.is_first_process else True)
        batches = draw_batches(pairs, args.batch_size, args.seed, epoch, self.step, self.device, self.generator, order)
        with bar:
            start = time.perf_counter()
            for batch in batches:
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
                    raise Interrupted

    def draw_unpaired(self, target, count=None):
        """A batch of images without pairs beside the step's own: see Unpaired.draw; floats, on the device.

        count: of each modality (default: as many as there are pairs in a batch). opt, sar: (B, 3, S, S) float32 in
        [0, 1]; opt_rows, sar_rows: (B) int64. Several processes draw their shares.
        """
        count = (count or self.args.batch_size) // distributed.world_size()
        opt, sar, opt_rows, sar_rows = target.draw(count, self.generator)
        images = to_float(opt, self.device), to_float(sar, self.device)
        return *images, opt_rows.to(self.device), sar_rows.to(self.device)

    def optimize(self, loss, optimizer, schedule, others=()):
        """One step down the loss for all that the optimiser holds, and the schedule's next learning rate.

        others: more (optimiser, schedule), of modules that are trained along by a rule of their own.
        """
        together = [(optimizer, schedule), *others]
        for each, _ in together:
            each.zero_grad()
        self.scaler.scale(loss).backward()
        for each, _ in together:
            self.scaler.step(each)
        self.scaler.update()
        for _, each in together:
            each.step()

    def record(self, **terms):
        """Keep the loss terms of this step (tensors; read at the epoch's end, so that no step waits for them)."""
        self.terms.append({name: value.detach() for name, value in terms.items()})

    def end_epoch(self, model, evaluation, schedule, collapsed=(), figures=()):
        """Write the epoch's figures and the checkpoint; evaluate where it is due.

        evaluation: Pairs, or None in pretraining, where nothing is retrieved.
        figures: {name: number} of the method's own, kept beside the loss terms.
        collapsed: {term: the value it has where all embeddings are alike}, to tell a collapse.
        """
        means = self._check_terms()
        self.epoch, self.step, self.terms = self.epoch + 1, 0, []
        for module in (model, *self.parts.values()):
            if isinstance(module, torch.nn.Module):
                distributed.average_batchnorm(module)                 # what is evaluated is what is saved
        is_last = self.epoch == self.args.epochs
        row = {"epoch": self.epoch, "lr": schedule.get_last_lr()[0], **means, **dict(figures),
               "seconds": round(self.seconds, 1)}
        text = " ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "epoch")
        self.log(f"epoch {self.epoch}: {text}")
        self._tell_collapse(row, dict(collapsed))
        results = metrics = None
        if evaluation is not None and (is_last or self.epoch % self.args.eval_every == 0):
            query, gallery = embed_pairs(model, evaluation, self.device, self.autocast)
            results = search(query, gallery, evaluation, self.device)
            metrics = evaluate(results, evaluation)
            self.log(format_metrics(metrics))
            for feature in features_of(metrics):
                row.update({f"{feature}_{name}": value for name, value in metrics[feature].items()})
        self.history.append(row)
        if self.is_first_process:
            columns = list(dict.fromkeys(name for row in self.history for name in row))
            write_rows(self.folder / "epochs.csv", columns, self.history)
        if not is_last:
            self.save()
            return
        if self.is_first_process:
            self._finish(model, evaluation, results, metrics)
        distributed.stop()

    def _tell_collapse(self, row, collapsed):
        """Say it once, in the epoch from which on a loss counts as stuck, and again if training ends so."""
        for name, level in collapsed.items():
            epochs_near = 0
            for past in reversed([*self.history, row]):
                if not 0.98 * level < past[name] < 1.1 * level:
                    break
                epochs_near += 1
            is_last = self.epoch == self.args.epochs
            if epochs_near == STUCK_EPOCHS or (is_last and epochs_near > STUCK_EPOCHS):
                remedy = "a lower --lr" if self.args.schedule == "cosine" else "a lower --lr or --schedule cosine"
                self.log(f"the {name} loss has stood near {level:.4g} for {STUCK_EPOCHS} epochs, as where all "
                         f"embeddings are alike: they have collapsed; if it stays there, try {remedy}")

    def _check_terms(self):
        """The mean of each loss term so far; a term that is not finite ends the run."""
        if not self.terms:
            return {}
        names = list(self.terms[0])
        values = torch.stack([torch.stack([step[name].float() for name in names]) for step in self.terms]).cpu()
        bad = (~torch.isfinite(values)).nonzero()
        if len(bad):
            step, term = bad[0].tolist()
            raise InputError(f"the loss term {names[term]} is {values[step, term].item()} in epoch {self.epoch + 1}, "
                             f"step {step + 1}: try a lower --lr, or --amp off; "
                             f"the last good checkpoint in {self.folder} is untouched")
        return dict(zip(names, values.mean(0).tolist()))

    def _finish(self, model, evaluation, results, metrics):
        state = {**model.settings, "img_size": self.args.img_size, "model": state_on_cpu(model)}
        write_tensors(self.folder / "weights.pt", state)
        seconds = round(self.seconds, 1)
        if evaluation is None:
            text = json.dumps({"seconds": seconds, "evaluated_on": "nothing"}, indent=1)
        else:
            write_text(self.folder / "retrieval.json", json.dumps(retrievals(results, evaluation)))
            evaluated_on = "validation" if self.args.validate else "test"
            text = summary(metrics, seconds, evaluation, evaluated_on)
        write_text(self.folder / "metrics.json", text)
        (self.folder / "checkpoint.pt").unlink(missing_ok=True)
        self.log(f"finished: {self.seconds:.0f} s of training, {self.folder}")


def summary(metrics, seconds, evaluation, evaluated_on):
    """The text of a metrics.json."""
    return json.dumps({**metrics, "seconds": seconds, "queries": len(evaluation.sar), "gallery": len(evaluation),
                       "distractors": evaluation.distractors, "evaluated_on": evaluated_on}, indent=1)
