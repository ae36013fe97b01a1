"""FLOPs and time of R-CNN and Fast R-CNN against the number of proposals, and the work that sharing the map saves.

    python benchmarks/detection.py                  # both backbones, 16 to 1,024 proposals; JSON lines and a figure
    python benchmarks/detection.py --quick          # the small backbone, 16 and 64 proposals, nothing written
    python benchmarks/detection.py --table          # the tables of docs/detection.md from the stored rows

Both detectors have the same backbone, the same layers for a region, the same images and the same boxes (of selective
search), with random parameters, batch 1. Convolutions of R-CNN run over R warped regions of side c, those of Fast R-CNN
over one image of height Y and width X. As every layer's FLOPs grow with the area of its input,

    redundancy = FLOPs(R-CNN convolutions) / FLOPs(Fast R-CNN convolutions) = R c^2 / (Y X) = repetition x enlargement

where repetition is the sum of the areas of the boxes with their context over the area of the image (the number of times
that a pixel is seen), and enlargement the mean pixels of a warped region for each of its pixels in the image. The FLOPs
are counted in the traced programs (``analysis.program_flops``), and by XLA in the compiled convolutions of the
image and of one region, times R.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from harness import (
    RESULTS,
    Candidate,
    Row,
    compiled,
    deviation,
    device_name,
    judged,
    measure,
    parse_arguments,
    report,
)

from jaxseq import analysis, plotting
from jaxseq.data.images import SceneDesign, SceneImages
from jaxseq.data.proposals import SelectiveSearch
from jaxseq.models.detection import (
    CropOutputs,
    DetectorConfig,
    LinearStages,
    RegionScores,
    apply_linear_stages,
    detect,
    map_regions,
)
from jaxseq.models.detection.rcnn import CHUNK

PROPOSALS = (16, 64, 256, 1024)
CLASSES = 10


class Case(NamedTuple):
    """A backbone, and the images that it sees."""

    encoder: str
    design: SceneDesign
    crop: int


CASES = (
    Case("small", SceneDesign(size=64, objects=(1, 4), digit_sizes=(14, 22)), 32),
    Case("efficientnet_lite0", SceneDesign(size=256, objects=(1, 4), digit_sizes=(56, 88), contrast=1.0), 224),
)


class Detectors(NamedTuple):
    """Both models with parameters."""

    fast: Any
    fast_variables: Any
    rcnn: Any
    rcnn_variables: Any
    linear: LinearStages


def build(case: Case) -> Detectors:
    """Both models; the shared layers have the parameters of Fast R-CNN."""
    options: dict[str, Any] = {"encoder": case.encoder}
    fast = DetectorConfig(model="fast_rcnn", **options).build(CLASSES)
    rcnn = DetectorConfig(model="rcnn", crop_size=case.crop, **options).build(CLASSES)
    size = case.design.size
    blank = jnp.zeros((1, size, size, 3), jnp.uint8), jnp.asarray([[[0.0, 0.0, size, size]]])
    variables = jax.jit(fast.init)(jax.random.key(0), *blank)
    shared = {name: variables["params"][name] for name in ("backbone", "region", "classes")}
    width, pooled = rcnn.hidden, rcnn.pooled_size**2 * rcnn.backbone.features
    random = np.random.default_rng(0)
    linear = LinearStages(
        jnp.float32(1),
        jnp.asarray(random.normal(size=(width, CLASSES)), jnp.float32),
        jnp.zeros(CLASSES),
        jnp.float32(1),
        jnp.asarray(random.normal(0, 1e-3, (pooled, CLASSES, 4)), jnp.float32),
        jnp.zeros((CLASSES, 4)),
    )
    return Detectors(fast, variables, rcnn, {"params": shared}, linear)


def images_and_boxes(case: Case, count: int, regions: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images ``[1 Y X 3]`` of the test part and their proposals ``[1 R 4]``, repeated where there are fewer."""
    source = SceneImages(case.design, "test", count)
    made = []
    for index in range(count):
        image = source([index])
        boxes = SelectiveSearch("fast").boxes(image[0], index)
        made.append((image, np.resize(boxes, (regions, 4)).astype(np.float32)[None]))
    return made


def chunked(function: Callable[[Any], Any], crops: Any) -> Any:
    """``function`` of crops ``[1 R ...]``, ``CHUNK`` at a time."""
    parts = crops.reshape(-1, min(CHUNK, crops.shape[1]), *crops.shape[2:])
    out = jax.lax.map(function, parts)
    return jax.tree.map(lambda x: x.reshape(1, crops.shape[1], *x.shape[2:]), out)


def stages(models: Detectors, size: int) -> dict[str, Callable[..., Any]]:
    """The stages of both detectors as functions of (image, boxes) or of what the stage before returns."""
    fast, rcnn = partial(models.fast.apply, models.fast_variables), partial(models.rcnn.apply, models.rcnn_variables)

    def scored(outputs: CropOutputs, boxes: Any) -> RegionScores:
        return apply_linear_stages(models.linear, outputs, boxes, (size, size))

    def whole_rcnn(image: Any, boxes: Any) -> Any:
        chunk = min(CHUNK, boxes.shape[1])
        found = map_regions(scored, models.rcnn, models.rcnn_variables, image, boxes, chunk=chunk)
        return detect(found, boxes, score_threshold=-1.0)

    def whole_fast(image: Any, boxes: Any) -> Any:
        return detect(fast(image, boxes).scored(boxes, (size, size)), boxes, score_threshold=0.01)

    return {
        "R-CNN": whole_rcnn,
        "R-CNN: warp": lambda image, boxes: rcnn(image, boxes, method="crops"),
        "R-CNN: convolutions": lambda crops: chunked(partial(rcnn, method="feature_map"), crops),
        "R-CNN: layers": lambda maps, boxes: scored(rcnn(maps, method="heads"), boxes),
        "R-CNN: suppression": lambda found, boxes: detect(found, boxes, score_threshold=-1.0),
        "Fast R-CNN": whole_fast,
        "Fast R-CNN: convolutions": lambda image: fast(image, method="feature_map"),
        "Fast R-CNN: pooling": lambda maps, boxes: fast(maps, boxes, method="pooled"),
        "Fast R-CNN: layers": lambda pooled, boxes: fast(pooled, method="heads").scored(boxes, (size, size)),
        "Fast R-CNN: suppression": lambda found, boxes: detect(found, boxes, score_threshold=0.01),
    }


def staged_inputs(run: dict[str, Callable], image: np.ndarray, boxes: np.ndarray) -> dict[str, tuple]:
    """The arguments of each stage: what the stage before it returns."""
    now = {name: jax.jit(function) for name, function in run.items()}
    crops = now["R-CNN: warp"](image, boxes)
    maps = now["R-CNN: convolutions"](crops)
    shared = now["Fast R-CNN: convolutions"](image)
    pooled = now["Fast R-CNN: pooling"](shared, boxes)
    return {
        "R-CNN": (image, boxes),
        "R-CNN: warp": (image, boxes),
        "R-CNN: convolutions": (crops,),
        "R-CNN: layers": (maps, boxes),
        "R-CNN: suppression": (now["R-CNN: layers"](maps, boxes), boxes),
        "Fast R-CNN": (image, boxes),
        "Fast R-CNN: convolutions": (image,),
        "Fast R-CNN: pooling": (shared, boxes),
        "Fast R-CNN: layers": (pooled, boxes),
        "Fast R-CNN: suppression": (now["Fast R-CNN: layers"](pooled, boxes), boxes),
    }


def speed(case: Case, models: Detectors, regions: int, repeats: int, budget: float) -> list[Row]:
    """The times and FLOPs of one backbone and one number of proposals."""
    size, run = case.design.size, stages(models, case.design.size)
    given = images_and_boxes(case, 2, regions)
    arguments = [staged_inputs(run, *pair) for pair in given]
    errors = {name: stages_error(run, name, arguments[0]) for name in ("R-CNN", "Fast R-CNN")}
    inputs = [(one,) for one in arguments]  # every candidate gets the arguments of all stages, and reads its own

    def candidate(name: str) -> Candidate:
        made = compiled(name, lambda *args: run[name](*args))
        return Candidate(name, lambda sets: made.prepare([one[0][name] for one in sets]))

    flops = {name: analysis.program_flops(function, *arguments[0][name]) for name, function in run.items()}
    image, crops = arguments[0]["Fast R-CNN: convolutions"], arguments[0]["R-CNN: convolutions"]
    convolutions = partial(models.rcnn.apply, models.rcnn_variables, method="feature_map")
    theirs = regions * compiled_flops(convolutions, (crops[0][:, :1],))
    ours = compiled_flops(run["Fast R-CNN: convolutions"], image)
    repetition = float(np.mean([repeated(boxes[0], size, case.crop, models.rcnn.context) for _, boxes in given]))
    facts = {
        "encoder": case.encoder,
        "size": size,
        "crop": case.crop,
        "proposals": regions,
        "predicted_redundancy": regions * case.crop**2 / size**2,
        "counted_redundancy": flops["R-CNN: convolutions"] / flops["Fast R-CNN: convolutions"],
        "compiled_redundancy": theirs / ours,
        "repetition": repetition,
    }
    rows = measure(
        facts, [candidate(name) for name in run], inputs, reference=None, warmup=1, repeats=repeats, budget_s=budget
    )
    return [
        row | {"gflops": flops[row["name"]] / 1e9, "error_vs_reference": errors[row["name"].partition(":")[0]]}
        for row in rows
    ]


def stages_error(run: dict[str, Callable], name: str, arguments: dict[str, tuple]) -> float:
    """The deviation of a detector's scores from those of its stages, one after another; raises if it is large."""
    whole = jax.jit(run[name])(*arguments[name])
    staged = jax.jit(run[f"{name}: suppression"])(*arguments[f"{name}: suppression"])
    return judged(deviation([np.sort(whole.scores)], [np.sort(staged.scores)]), 1e-3)


def compiled_flops(function: Callable, arguments: tuple) -> float:
    """FLOPs that XLA counts in a compiled program without loops."""
    analysis: Any = jax.jit(function).lower(*arguments).compile().cost_analysis()
    return analysis["flops"]


def repeated(boxes: np.ndarray, size: int, crop: int, context: int) -> float:
    """The sum of the areas of boxes, with their context and within the image, over the area of the image."""
    margin = context * (boxes[:, 2:] - boxes[:, :2]) / (crop - 2 * context)
    low, high = (boxes[:, :2] - margin).clip(0, size), (boxes[:, 2:] + margin).clip(0, size)
    return float((high - low).prod(1).sum() / size**2)


def table(rows: list[Row]) -> str:
    """The tables of docs/detection.md: redundancy and times of each backbone and number of proposals."""
    lines: list[str] = []
    for encoder in dict.fromkeys(row["encoder"] for row in rows):
        mine = [row for row in rows if row["encoder"] == encoder]
        lines += [f"\n{encoder}, image {mine[0]['size']} px, regions warped to {mine[0]['crop']} px", ""]
        lines.append(
            "| proposals | repetition | redundancy: predicted | counted | compiled | R-CNN, GFLOP | Fast, GFLOP "
            "| R-CNN, ms | Fast, ms | time, ratio |"
        )
        lines.append("|" + "--:|" * 10)
        for regions in dict.fromkeys(row["proposals"] for row in mine):
            by_name = {row["name"]: row for row in mine if row["proposals"] == regions}
            slow, fast = by_name["R-CNN"], by_name["Fast R-CNN"]
            ratios = [slow[f"{kind}_redundancy"] for kind in ("predicted", "counted", "compiled")]
            lines.append(
                f"| {regions:,} | {slow['repetition']:.1f} | "
                + " | ".join(f"{ratio:.1f}" for ratio in ratios)
                + f" | {slow['gflops']:.2f} | {fast['gflops']:.3f} | {1e3 * slow['median_s']:.1f} | "
                f"{1e3 * fast['median_s']:.2f} | {slow['median_s'] / fast['median_s']:.1f} |"
            )
        lines += ["", "ms of each stage:", ""]
        names = [name for name in dict.fromkeys(row["name"] for row in mine) if ": " in name]
        lines.append("| proposals | " + " | ".join(names) + " |")
        lines.append("|" + "--:|" * (1 + len(names)))
        for regions in dict.fromkeys(row["proposals"] for row in mine):
            by_name = {row["name"]: row for row in mine if row["proposals"] == regions}
            times = " | ".join(f"{1e3 * by_name[name]['median_s']:.2f}" for name in names)
            lines.append(f"| {regions:,} | {times} |")
    return "\n".join(lines)


def draw(rows: list[Row], file: Any) -> None:
    """Time per image against proposals, both detectors, and the ratios of FLOPs and of times, for each backbone."""
    encoders = list(dict.fromkeys(row["encoder"] for row in rows))
    figure = plotting.make_figure(9.6, 3.6 * len(encoders))
    panels = figure.subplots(len(encoders), 2, squeeze=False)
    for encoder, (left, right) in zip(encoders, panels, strict=True):
        mine = [row for row in rows if row["encoder"] == encoder]
        numbers = list(dict.fromkeys(row["proposals"] for row in mine))
        for name, color in (("R-CNN", plotting.RED), ("Fast R-CNN", plotting.BLUE)):
            times = [1e3 * row["median_s"] for row in mine if row["name"] == name]
            left.loglog(numbers, times, "o-", color=color, label=name)
            stage = [1e3 * row["median_s"] for row in mine if row["name"] == f"{name}: convolutions"]
            left.loglog(numbers, stage, "--", color=color, linewidth=1, label=f"{name}, convolutions alone")
        whole = [row for row in mine if row["name"] == "R-CNN"]
        fast = [row["median_s"] for row in mine if row["name"] == "Fast R-CNN"]
        right.loglog(
            numbers,
            [row["counted_redundancy"] for row in whole],
            "o-",
            color=plotting.INK,
            label="FLOPs of convolutions",
        )
        right.loglog(
            numbers,
            [row["repetition"] for row in whole],
            "--",
            color=plotting.SOFT,
            label="repetition: boxes over a pixel",
        )
        ratio = [row["median_s"] / other for row, other in zip(whole, fast, strict=True)]
        right.loglog(numbers, ratio, "o-", color=plotting.RED, label="time of an image")
        sizes = f"{encoder}, {mine[0]['size']} px"
        plotting.prepare_axes(left, f"{sizes}: time of an image", x_label="proposals", y_label="ms")
        plotting.prepare_axes(right, f"{sizes}: R-CNN / Fast R-CNN", x_label="proposals", y_label="ratio")
        for axes in (left, right):
            axes.set_xticks(numbers, [f"{number:,}" for number in numbers])
            axes.minorticks_off()
            axes.legend(frameon=False, fontsize=8)
    plotting.save_figure(figure, file)


def main() -> None:
    """Run the cases, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the small backbone, few proposals, nothing written")
    parser.add_argument("--table", action="store_true", help="print the tables of the stored rows")
    parser.add_argument(
        "--budget", type=float, default=60.0, help="seconds for each number of proposals (default: %(default)s)"
    )
    options = parse_arguments(parser)
    stored = RESULTS / f"detection-{device_name()}.jsonl"
    if options.table:
        print(table([json.loads(line) for line in stored.read_text().splitlines()]))
        return
    rows: list[Row] = []
    for case in CASES[:1] if options.quick else CASES:
        models = build(case)
        for regions in PROPOSALS[:2] if options.quick else PROPOSALS:
            rows += speed(case, models, regions, 3 if options.quick else 9, options.budget)
            jax.clear_caches()
    report("detection", rows, baseline="Fast R-CNN", write=not options.quick)
    print(table(rows))
    if not options.quick:
        draw(rows, stored.with_suffix(".png"))


if __name__ == "__main__":
    main()
