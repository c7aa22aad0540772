"""What the table does not answer: how the embeddings of the two modalities lie, what is retrieved, and where it fails.

    python tools/analyze.py --run results/NAME
    python tools/analyze.py --run results/DATA/triplet/seed0 --run results/DATA/triplet+exchange/seed0

Evaluates on the test split (--data_path: of another data set) and writes into each run's folder `analysis/`:
figures.json, and as PNG and PDF tsne, matched, pseudo_modal, retrieval, training, failures. Several runs also stand
side by side, in the first one's folder: tsne_runs, cmc.
"""
import argparse
import json
import sys
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib.ticker import MaxNLocator
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_score

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ and tools/ are

from shared import options
from shared.dataset import load_splits, map_images
from shared.evaluate import FEATURES, embed, embed_pairs, expected_ranks, first_answers
from shared.filters import pseudo_modal
from shared.model import load_model
from shared.plumbing.device import autocast, choose_device
from shared.plumbing.errors import InputError, run_script
from shared.plumbing.files import read_rows, write_text
from shared.plumbing.run_files import read_settings
from shared.reading.layouts import find_data, read_pairs_csv
from shared.reading.readers import readers_of_run
from tools.figures import CYCLE, GREEN, MARKERS, OPT, ORANGE, PURPLE, SAR, SKY, known_values, panels, save

# Name: (channel exchange, filter)
PSEUDO = {"exchange": (True, None), "guided": (False, "guided"), "guided, exchange": (True, "guided")}


# The figures ---------------------------------------------------------------------------------------------------

def matched_scores(query, gallery, query_place):
    """Inner products of matched (N) and of all non-matched (N x (M - 1)) pairs.

    query: (N, D), gallery: (M, D), query_place: (N).
    """
    scores = query @ gallery.T
    own = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, query_place[:, None], True)
    return scores[own], scores[~own]


def roc_area(matched, unmatched):
    """Probability that a matched pair scores higher than a non-matched one (ties: half): area under the ROC curve."""
    scores = torch.cat([matched, unmatched]).numpy()
    return float(roc_auc_score(np.arange(len(scores)) < len(matched), scores))


def modality_gap(query, gallery, query_place, folds=5):
    """How far apart the modalities lie: {"mean_distance", "accuracy"}.

    mean_distance: L2, between the mean embeddings of the two. accuracy: of a logistic regression that tells the
    modality of an embedding, cross-validated with both images of a place in the same fold; 0.5 is chance where there
    are as many of each.
    """
    embeddings = torch.cat([gallery[query_place], query]).numpy()
    label = np.repeat([0, 1], len(query))
    places = np.tile(query_place.numpy(), 2)
    classifier = LogisticRegression(max_iter=1000)
    accuracies = cross_val_score(classifier, embeddings, label, groups=places, cv=GroupKFold(folds))
    distance = (query.mean(0) - gallery.mean(0)).norm().item()
    return {"mean_distance": distance, "accuracy": float(accuracies.mean())}


def betweenness(opt, sar, pseudo):
    """Share of pseudo-modal embeddings that lie between the two of their place. All (N, D).

    Between: closer to each than these are to each other.
    """
    apart = (opt - sar).square().sum(1)
    to_opt, to_sar = (pseudo - opt).square().sum(1), (pseudo - sar).square().sum(1)
    return ((to_opt < apart) & (to_sar < apart)).double().mean().item()


def edge_density(images):
    """Mean gradient magnitude (Sobel, of grey) of each image: (N, S, S, 3) uint8 -> (N) float, grey values a pixel."""
    densities = []
    for image in images.numpy():
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
        across, down = (cv2.Sobel(grey, cv2.CV_32F, *order, scale=1 / 8) for order in ((1, 0), (0, 1)))
        densities.append(np.hypot(across, down).mean())
    return np.array(densities)


def rank_correlation(a, b):
    """Spearman's, of two arrays (N); None where one of them is constant: it is not defined there."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(spearmanr(a, b).statistic)


def correlation_text(correlation):
    """A correlation as text, with what None means."""
    return "not defined, all are alike" if correlation is None else f"{correlation:.2f}"


def cmc(ranks, most):
    """Share of queries in percent whose truth is among the first k answers, k = 1 .. most."""
    return 100 * (ranks[:, None] <= torch.arange(1, most + 1)).double().mean(0)


# The pictures ---------------------------------------------------------------------------------------------------

def tsne(*parts):
    """t-SNE of several sets of embeddings (N, D) together: as many arrays (N, 2)."""
    embeddings = torch.cat(parts).numpy()
    perplexity = min(30, (len(embeddings) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(embeddings)
    return np.split(points, np.cumsum([len(part) for part in parts])[:-1])


def plot_tsne(axis, a, b, title):
    """Points (N, 2) of optical and of SAR, the two of a place joined by a line."""
    axis.plot(np.stack([a[:, 0], b[:, 0]]), np.stack([a[:, 1], b[:, 1]]), color="0.7", linewidth=0.4, zorder=0)
    axis.scatter(*a.T, s=6, color=OPT, marker="o", linewidths=0, label="optical")
    axis.scatter(*b.T, s=6, color=SAR, marker="^", linewidths=0, label="SAR")
    axis.set(title=title, xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=2, markerscale=1.5)


def plot_matched(matched, unmatched, area, file):
    figure, (distances, products) = panels(2)
    _plot_densities(distances, 2 - 2 * matched, 2 - 2 * unmatched, "squared L2 distance")
    _plot_densities(products, matched, unmatched, "inner product")
    products.legend(title=f"ROC area {area:.4f}", loc="upper left")
    save(figure, file)


def _plot_densities(axis, matched, unmatched, label):
    bins = np.linspace(*np.percentile(torch.cat([matched, unmatched]).numpy(), (0, 100)), 60)
    axis.hist(unmatched.numpy(), bins, density=True, color=ORANGE, alpha=0.6, label="non-matched")
    axis.hist(matched.numpy(), bins, density=True, histtype="step", color=OPT, linewidth=1.5, label="matched")
    axis.set(xlabel=label, ylabel="density")


def plot_pseudo_modal(opt, sar, pseudo, shares, file):
    """t-SNE of the images and their pseudo-modal images together. pseudo: name -> (optical, SAR), each (N, D)."""
    parts = {"optical": opt, "SAR": sar}
    for name, (of_opt, of_sar) in pseudo.items():
        parts.update({f"{name} of optical": of_opt, f"{name} of SAR": of_sar})
    figure, (axis, bars) = panels(2, height=3)
    colours = (OPT, SAR, SKY, ORANGE, GREEN, PURPLE)
    for name, points, colour, marker in zip(parts, tsne(*parts.values()), colours, "o^o^o^"):
        axis.scatter(*points.T, s=5, color=colour, marker=marker, linewidths=0, label=name)
    axis.set(xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
    axis.legend(markerscale=2, loc="center left", bbox_to_anchor=(1, 0.5))
    bars.barh(list(shares), [100 * value for value in shares.values()], color=GREEN)
    bars.set(xlabel="between the two of their place (%)", xlim=(0, 100))
    bars.invert_yaxis()
    save(figure, file)


def plot_retrieval(pairs, query, gallery, ranks, file, seed=0, each=12, answers=5):
    """12 right and 12 wrong queries: the query, the first answers with scores, the truth with its rank."""
    scores, rows = first_answers(query, gallery, min(answers, len(gallery)))
    order = torch.randperm(len(query), generator=torch.Generator().manual_seed(seed))
    right, wrong = order[ranks[order] == 1][:each], order[ranks[order] > 1][:each]
    shown_queries = torch.cat([right, wrong]).tolist()
    columns = rows.shape[1] + 2
    figure, axes = panels(columns, max(1, len(shown_queries)), width=0.8, height=0.95)
    for axis in axes:
        axis.set(xticks=[], yticks=[])
    for i, number in enumerate(shown_queries):
        truth = pairs.sar_place[number].item()
        shown = [(pairs.sar[number], pairs.sar_names[number], "black")]
        for row, score in zip(rows[number].tolist(), scores[number].tolist()):
            shown.append((pairs.opt[row], f"{score:.3f}", GREEN if row == truth else SAR))
        shown.append((pairs.opt[truth], f"truth: rank {ranks[number]:.0f}", "black"))
        for axis, (image, text, colour) in zip(axes[i * columns:(i + 1) * columns], shown):
            axis.imshow(image.numpy())
            axis.set_title(text, fontsize=5, pad=2, color=colour)
            for spine in axis.spines.values():
                spine.set(visible=True, color=colour, linewidth=1 if colour == "black" else 2)
    save(figure, file)


def plot_training(epochs, file):
    """The loss terms, the learning rate and top-1 over the epochs. epochs: the rows of epochs.csv."""
    number = [int(row["epoch"]) for row in epochs]
    evaluated = [name.removesuffix("_top1") for name in epochs[0] if name.endswith("_top1")]
    terms = [name for name in epochs[0]
             if name not in ("epoch", "lr", "seconds") and not name.startswith(tuple(f"{f}_" for f in evaluated))]
    figure, (loss, rate, top1) = panels(3, width=2.4)
    for name, colour in zip(terms, CYCLE * 9):
        loss.plot(*known_values(epochs, name), color=colour, label=name)
    loss.set(xlabel="epoch", ylabel="loss term", yscale="symlog" if len(terms) > 1 else "linear")
    loss.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=3, columnspacing=1)    # curves go everywhere
    rate.plot(number, [float(row["lr"]) for row in epochs], color=OPT)
    rate.set(xlabel="epoch", ylabel="learning rate of the backbone")
    for feature, colour, marker in zip(evaluated, CYCLE, MARKERS):
        top1.plot(*known_values(epochs, f"{feature}_top1"), color=colour, marker=marker, markersize=3, label=feature)
    top1.set(xlabel="epoch", ylabel="top-1 (%)", ylim=(0, 100))
    top1.legend()
    for axis in (loss, rate, top1):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))      # of a single epoch, too
    save(figure, file)


def plot_failures(ranks, density, regions, correlation, file):
    """Rank of the truth against edge density, and by region where that is known. regions: N names or None."""
    figure, axes = panels(2 if regions else 1)
    axes[0].scatter(density, ranks, s=5, color=OPT, linewidths=0, alpha=0.6)
    axes[0].set(xlabel="edge density of the optical image (grey values / px)", ylabel="rank of the truth",
                yscale="log", title=f"Spearman's rank correlation {correlation_text(correlation)}")
    if regions:
        names = sorted(set(regions))
        at = np.array(regions)
        axes[1].bar(names, [100 * (ranks.numpy()[at == name] == 1).mean() for name in names], color=OPT)
        axes[1].set(xlabel="region", ylabel="top-1 (%)", ylim=(0, 100))
    save(figure, file)


# One run, and several ------------------------------------------------------------------------------------------

def analyze(run, model, img_size, args, device):
    """Everything about one run; returns what the pictures of several runs take."""
    mixed = autocast(device, args.amp)
    data_path = args.data_path or read_settings(run)["data_path"]
    readers = readers_of_run(run, args, args.data_path is None)
    pairs, = load_splits(data_path, ("test",), img_size, args.workers, readers=readers)
    query, gallery = (part[args.feature] for part in embed_pairs(model, pairs, device, mixed))
    truth = pairs.sar_place
    folder = run / "analysis"
    folder.mkdir(exist_ok=True)

    ranks = expected_ranks(query, gallery, truth, torch.arange(len(gallery))).of_truth()
    matched, unmatched = matched_scores(query, gallery, truth)
    area = roc_area(matched, unmatched)
    plot_matched(matched, unmatched, area, folder / "matched")

    sample = torch.randperm(len(query), generator=torch.Generator().manual_seed(0))[:args.sample]
    opt, sar = gallery[truth[sample]], query[sample]
    figure, axes = panels(1, height=3)
    points = tsne(opt, sar)
    plot_tsne(axes[0], *points, *names_of([run]))
    save(figure, folder / "tsne")

    pseudo, shares = {}, {}
    for name, (exchange, filter_name) in PSEUDO.items():
        make = partial(pseudo_modal, exchange=exchange, filter_name=filter_name,
                       generator=torch.Generator().manual_seed(0))
        of_opt, of_sar = (embed(model, map_images(make, images), modality, device, mixed)[args.feature]
                          for images, modality in ((pairs.opt, "opt"), (pairs.sar, "sar")))
        shares[f"{name} of optical"] = betweenness(gallery[truth], query, of_opt[truth])
        shares[f"{name} of SAR"] = betweenness(gallery[truth], query, of_sar)
        pseudo[name] = of_opt[truth[sample]], of_sar[sample]
    shown = {name: pseudo[name] for name in ("exchange", "guided")}
    plot_pseudo_modal(opt, sar, shown, shares, folder / "pseudo_modal")

    plot_retrieval(pairs, query, gallery, ranks, folder / "retrieval")
    plot_training(read_rows(run / "epochs.csv"), folder / "training")
    density = edge_density(pairs.opt)[truth.numpy()]
    correlation = rank_correlation(density, ranks.numpy())
    places = read_pairs_csv(find_data(data_path), "test")
    regions = [places.get(pairs.names[place], {}).get("region", "") for place in truth.tolist()]
    plot_failures(ranks, density, regions if all(regions) else None, correlation, folder / "failures")

    gap = modality_gap(query, gallery, truth)
    distances = {"matched": (2 - 2 * matched).median().item(), "non-matched": (2 - 2 * unmatched).median().item()}
    figures = {"feature": args.feature, "queries": len(query), "gallery": len(gallery), "top1": cmc(ranks, 1)[0].item(),
               "roc_area": area, "modality_gap": gap, "between": shares, "rank_edge_density_correlation": correlation,
               "median_distance": distances}
    write_text(folder / "figures.json", json.dumps(figures, indent=1))
    print(f"{run}: ROC area {area:.4f}; modality gap {gap['mean_distance']:.3f}, told apart with "
          f"{100 * gap['accuracy']:.1f}%; rank against edge density {correlation_text(correlation)}")
    print("  between the two of their place: "
          + ", ".join(f"{name} {100 * share:.1f}%" for name, share in shares.items()))
    print(f"  {folder}")
    return {"points": points, "ranks": ranks}


def names_of(runs):
    """The row's name of each results/DATA/ROW/seedK, with the seed where a row comes several times.

    Of other folders their own name.
    """
    runs = [run.resolve() for run in runs]
    names = [run.parent.name if run.name.startswith("seed") else run.name for run in runs]
    return [f"{name}, {run.name}" if names.count(name) > 1 else name for name, run in zip(names, runs)]


def side_by_side(runs, analyses):
    """The pictures of several runs, in the first one's folder. analyses: what analyze() returned of each."""
    folder, names = runs[0] / "analysis", names_of(runs)
    figure, axes = panels(len(runs), width=2.4, height=2.6)
    for axis, analysis, name in zip(axes, analyses, names):
        plot_tsne(axis, *analysis["points"], name)
    save(figure, folder / "tsne_runs")
    figure, (axis,) = panels(height=2.8)
    for analysis, name, colour, marker in zip(analyses, names, CYCLE * 9, MARKERS * 9):
        shares = cmc(analysis["ranks"], 20)
        axis.plot(range(1, 21), shares, color=colour, marker=marker, markersize=2.5, label=name)
    axis.set(xlabel="rank k", ylabel="queries with the truth in the first k (%)", ylim=(None, 100))
    axis.legend()
    save(figure, folder / "cmc")
    print(f"side by side: {folder / 'tsne_runs.png'}, {folder / 'cmc.png'}")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, action="append", required=True,
                        help="the folder of a run; may be given several times")
    parser.add_argument("--data_path", help="another data set than the run's own")
    parser.add_argument("--feature", choices=FEATURES, default="FC")
    parser.add_argument("--sample", type=options.positive, default=200, help="places in the t-SNE pictures")
    options.add_reading(parser)
    options.add_device(parser)
    return parser.parse_args()


def main(args):
    files = [str(run) for run in args.run if run.is_file()]
    if files:
        raise InputError(f"--run {' '.join(files)}: a packed run tells nothing of its epochs; give the folder of a run")
    device = choose_device(args.device)
    models = [load_model(run, device) for run in args.run]            # a folder without a run is named before the work
    analyses = [analyze(run, *model, args, device) for run, model in zip(args.run, models)]
    if len(analyses) > 1:
        side_by_side(args.run, analyses)


if __name__ == "__main__":
    run_script(main, arguments)
