"""The demo: joint training on composed pairs of real photographs, without annotation, and a report."""

import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import cosegflow
from cosegflow.data.composer import ComposedPairs
from cosegflow.data.errors import DatasetError
from cosegflow.data.mixed import MixedSource
from cosegflow.data.pair import Pair, collate_pairs
from cosegflow.data.registry import open_training_source
from cosegflow.data.sources import Library, load_library
from cosegflow.data.training import TrainingSample, TrainingSamples, TrainingSource, collate_training
from cosegflow.joint.callbacks import StepBar
from cosegflow.joint.checkpoint import save_checkpoint
from cosegflow.joint.config import DataConfig
from cosegflow.joint.fit import quiet_lightning, run_trainer
from cosegflow.joint.fit_data import StepBatches, find_photographs
from cosegflow.joint.model import JointModel, ModelConfig
from cosegflow.joint.module import JointModule, TrainConfig
from cosegflow.joint.pictures import pair_cells
from cosegflow.joint.predict import Prediction, predict, predict_nearest
from cosegflow.metrics import PCK, EndPointError, MaskIoU, box_length
from cosegflow.report import Example, Row, check_output, format_table, staged_folder, verdicts, write_report

BATCH = 4
EVALUATED = 48
SHOWN = 8
LEAST_STEPS = 60
"""Fewer teach nothing; where they take longer than the minutes asked for, training may take half as long again."""
POOL = 200
"""So many training pairs are composed; then they come again, in another order."""

Predictor = Callable[[JointModel, Tensor, Tensor], Prediction]


class ComposedSource:
    """A pool of composed pairs as a `TrainingSource`, over and over, each time in another order.

    Composing takes longer than reading, so a pool is composed once.
    """

    name = "composed"

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = pairs

    @property
    def epoch_length(self) -> int:
        """The number of pairs."""
        return len(self.pairs)

    def with_at_least(self, count: int) -> "ComposedSource":
        """The source itself."""
        return self

    def draw(
        self, seed: int, number: int, *, size: int, triplets: bool, augment: bool, truth: bool = False
    ) -> TrainingSample:
        """Sample `number`, a function of (seed, number); composing was the augmentation, and set the size.

        Raises:
            DatasetError: triplets or the truth are asked for.
        """
        if triplets or truth:
            raise DatasetError("composed: has no triplets and no truth")
        around, place = divmod(number, len(self.pairs))
        order = np.random.default_rng((seed, around)).permutation(len(self.pairs))
        pair, other = self.pairs[order[place]], self.pairs[order[place - 1]]
        ground = other.image_a if number % 2 else other.image_b
        return TrainingSample(pair.image_a, pair.image_b, None, ground, pair.category, number)


def evaluate(model: JointModel, pairs: list[Pair], predictor: Predictor, name: str, masks: bool = True) -> Row:
    """PCK, end-point error and IoU (both masks) of a predictor on pairs with truth, in pixels of the photographs."""
    pck, error, iou = PCK(), EndPointError(), MaskIoU()
    model.eval()
    for start in range(0, len(pairs), 8):
        batch = collate_pairs(pairs[start : start + 8])
        assert batch.flow_ab is not None and batch.valid_ab is not None
        assert batch.mask_a is not None and batch.mask_b is not None
        found = predictor(model, batch.image_a, batch.image_b)
        pck.update(found.flow_ab, batch.flow_ab, batch.valid_ab, box_length(batch.mask_b))
        error.update(found.flow_ab, batch.flow_ab, batch.valid_ab)
        iou.update(found.mask_a, batch.mask_a)
        iou.update(found.mask_b, batch.mask_b)
    shares = [float(v) for v in pck.compute()]
    return Row(name, (shares[0], shares[1], shares[2]), float(error.compute()), float(iou.compute()) if masks else None)


def _examples(model: JointModel, pairs: list[Pair]) -> list[Example]:
    examples = []
    for number, pair in enumerate(pairs):
        found = predict(model, pair.image_a[None], pair.image_b[None])
        iou = MaskIoU()
        assert pair.mask_a is not None
        iou.update(found.mask_a, pair.mask_a[None])
        title = f"{number + 1}. {pair.category} (IoU in a {float(iou.compute()):.2f})"
        examples.append(Example(title, pair_cells(pair.image_a, pair.image_b, found, 0)))
    return examples


def _pace(module: JointModule, loader: DataLoader) -> float:
    """Seconds per step, timed without learning; leaves torch at the number of threads that was fastest.

    On a machine that others use too, two threads that wait for each other can be several times slower than one.
    """
    batches = list(loader)
    most, best = torch.get_num_threads(), (float("inf"), 1)
    for threads in sorted({1, most}):
        torch.set_num_threads(threads)
        spent = []
        for index, batch in enumerate(batches):
            start = time.perf_counter()
            module.training_step(batch, index).backward()
            spent.append(time.perf_counter() - start)
        best = min(best, (sum(spent[1:]) / max(1, len(spent) - 1), threads))
    torch.set_num_threads(best[1])
    module.zero_grad(set_to_none=True)
    return best[0]


def train(
    library: Library, model: ModelConfig, *, minutes: float, steps: int | None, seed: int,
    photographs: Path | None = None,
) -> JointModule:  # fmt: skip
    """Trains on pairs composed from `library`; it sees the images, and that a pair shares its category.

    Every other sample is of `photographs`, a folder with a folder for each category, where there is one.
    """
    lightning.seed_everything(seed, verbose=False)
    pool = ComposedPairs(library, POOL, seed=seed, same_stamp=1.0)
    composed = [pool[i] for i in range(min(POOL, BATCH * (steps or POOL)))]

    source: TrainingSource = ComposedSource(composed)
    if photographs is not None:
        source = MixedSource([source, open_training_source("folder", photographs)])
    samples = TrainingSamples(source, seed=seed)

    def loader(count: int) -> DataLoader:
        return DataLoader(samples, batch_sampler=StepBatches(count, BATCH), collate_fn=collate_training)

    limit = None
    if steps is None:
        pace = _pace(JointModule(model, TrainConfig(seed=seed)), loader(4))
        steps = max(LEAST_STEPS, int(60 * minutes / (1.1 * pace)))
        limit = timedelta(minutes=1.5 * minutes)
        lightning.seed_everything(seed, verbose=False)
    module = JointModule(model, TrainConfig(steps=steps, seed=seed))
    trainer = lightning.Trainer(
        max_steps=steps,
        max_time=limit,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        callbacks=[StepBar()],
    )
    run_trainer(trainer, module, train_dataloaders=loader(steps))
    return module.eval()


def run(
    out: Path,
    *,
    minutes: float = 3.0,
    seed: int = 0,
    steps: int | None = None,
    data: str | None = None,
    checkpoint: Path | None = None,
    backbone: str = "efficientnet-lite0",
    evaluated: int = EVALUATED,
) -> tuple[Row, Row]:
    """Runs the demo; returns the rows before and after training.

    Raises:
        OutputError: `out` cannot be written. DataNotFoundError: `data` has no stamps.
    """
    check_output(out, "--out")
    quiet_lightning()
    torch.set_num_threads(min(torch.get_num_threads(), max(1, os.cpu_count() or 1)))
    start = time.perf_counter()
    library = load_library(data)
    training, held_out = library.split()
    print(f"data: {library.origin}")
    print(f"training on {len(training.stamps)} stamps, {len(training.backgrounds)} backgrounds; held out: ", end="")
    print(f"{len(held_out.stamps)} and {len(held_out.backgrounds)}, none in both")
    tests = ComposedPairs(held_out, evaluated, seed=seed + 1_000_003, truth=True)
    pairs = [tests[i] for i in range(evaluated)]
    config = ModelConfig(backbone=backbone)
    untrained = JointModel(config)
    rows = [
        evaluate(untrained, pairs, predict_nearest, "cosine nearest neighbour, no masks", masks=False),
        evaluate(untrained, pairs, predict, "before training (pretrained, no learning)"),
    ]
    photographs = find_photographs(DataConfig(root=None if data is None else Path(data)))
    if photographs is not None:
        print(f"and on the photographs by category in {photographs}")
    module = train(training, config, minutes=minutes, steps=steps, seed=seed, photographs=photographs)
    rows.append(evaluate(module.model, pairs, predict, "after joint training, no annotation"))
    before, after = rows[1], rows[-1]
    notes = [
        "Semantic matching and object co-segmentation trained together. Training sees pairs of photographs that "
        "share a category, and nothing else: no mask, no key point, no flow. All numbers and pictures are of held-out "
        "pairs: neither their objects nor their backgrounds were in training.",
        f"Data: {library.origin}. Held out: {len(held_out.stamps)} stamps and {len(held_out.backgrounds)} backgrounds; "
        f"{evaluated} pairs evaluated. PCK: share of the object's pixels matched within alpha times the longer side of "
        "the object in b. Photographs have 240 x 240 pixels.",
        f"{module.recipe.steps} steps of {BATCH} pairs planned, {time.perf_counter() - start:.0f} seconds in all, "
        f"{torch.get_num_threads()} threads, seed {seed}; cosegflow {cosegflow.__version__}, "
        f"torch {torch.__version__}.",
    ]
    with staged_folder(out, "--out") as stage:
        save_checkpoint(module.model, stage / "model.ckpt")
        write_report(
            stage,
            "cosegflow: joint matching and co-segmentation",
            notes,
            rows,
            (before, after),
            _examples(module.model, pairs[:SHOWN]),
        )
    if checkpoint is not None:
        save_checkpoint(module.model, checkpoint)
    print("\n" + format_table(rows) + "\n")
    for sentence, _ in verdicts(before, after):
        print(f"  {sentence}")
    print(f"\nreport: {(out / 'index.html').resolve()}\ncheckpoint: {(out / 'model.ckpt').resolve()}")
    return before, after
