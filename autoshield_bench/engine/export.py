"""Images of a finished run, written for people (PNG) and programs (safetensors)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from autoshield_bench import places
from autoshield_bench.contracts import Dataset
from autoshield_bench.engine.data import Data
from autoshield_bench.engine.journal import Journal
from autoshield_bench.engine.pipeline import PassCounter, Pipeline
from autoshield_bench.engine.progress import Silence
from autoshield_bench.engine.stages import Workshop
from autoshield_bench.errors import StoreError, UsageError
from autoshield_bench.numeric import resolve_device
from autoshield_bench.plan import Cell, make_plan
from autoshield_bench.registry import Registry
from autoshield_bench.results import CellRecord, ResultSet, cell_path, load_results
from autoshield_bench.seeding import ImageRandom, derive_seed
from autoshield_bench.store import ArtifactStore, read_json, write_bytes
from autoshield_bench.suite_check import check_suite
from autoshield_bench.suite_file import SuiteDocument


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What to write."""

    only: str
    """Cells whose id matches this shell pattern."""
    images: int
    """Images per cell: the first of the fixed stratified order."""
    fallen: bool
    """Only images that are right when clean and that the attack broke."""
    formats: Sequence[str]
    """``png``, ``safetensors`` or both."""
    out: Path
    data_dir: Path | None
    cache_dir: Path | None
    plugins: Sequence[Path] = ()
    """Single files to load plugins from, beside the installed ones."""


def export(directory: Path, options: ExportOptions) -> Iterator[Path]:
    """Write the images of attacked cells and yield each file.

    Per cell: one PNG with a row per image (clean, adversarial, purified where there is a defense) and one safetensors
    file with ``index``, ``label``, ``clean``, ``adversarial`` and ``purified``. Raises UsageError where nothing
    matches, StoreError where the cache no longer holds what the run made.
    """
    if options.images < 1:
        raise UsageError(f"--images {options.images} is too small; give at least 1")
    results = load_results(directory)
    chosen = [record for record in results.select(options.only) if record.cell.attack and record.outcomes]
    if not chosen:
        raise UsageError(f"{directory}: no finished attack matches --only {options.only!r}")
    cells, workshop = _open(results, options)
    written = 0
    for record in chosen:
        cell = cells.get(record.key)
        if cell is None:
            raise StoreError(
                f"{directory / cell_path(record.key, record.cell)}: made by other code, plugins, data or machine than "
                f"these; run the suite again to export its images"
            )
        for path in _export_cell(record, cell, _right_when_clean(results, record), workshop, options):
            written += 1
            yield path
    if not written:
        raise UsageError(f"{directory}: no image fell in the cells that match --only {options.only!r}")


def _open(results: ResultSet, options: ExportOptions) -> tuple[dict[str, Cell], Workshop]:
    """Return the cells of the suite as it would run here, by key, and what can read their artifacts."""
    suite_file = results.directory / "plan.json"
    loaded = check_suite(
        SuiteDocument.from_dict(dict(results.suite), suite_file), Registry.discover(options.plugins), results.directory
    )
    recorded = read_json(suite_file)
    try:
        device = resolve_device(str(recorded["numeric_class"]).partition("/")[0])
        checkpoints = {str(name): str(digest) for name, digest in dict(recorded["checkpoints"]).items()}
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{suite_file}: these results cannot be made again here ({error})") from error
    largest = max(record.outcomes.n for record in results if record.outcomes)
    # Some attacks have the size of a batch in their keys, and runs with different sizes may share this directory.
    plans = [
        make_plan(
            loaded,
            data_dir=options.data_dir or places.data_dir(),
            device=device,
            batch_size=size,
            limit=largest,
            checkpoints=checkpoints,
        )
        for size in _batch_sizes(results)
    ]
    plan = plans[0]
    dataset: Dataset = loaded.registry.make(plan.dataset.plugin, plan.suite.dataset.params)
    workshop = Workshop(
        registry=loaded.registry,
        store=ArtifactStore(options.cache_dir or places.cache_dir()),
        data=Data(dataset, plan.data_dir),
        device=device,
        batch_size=250,
        journal=Journal(results.directory),
        progress=Silence(),
        force=False,
        read_only=True,
    )
    return {cell.key: cell for plan in plans for cell in plan.cells}, workshop


def _batch_sizes(results: ResultSet) -> list[int]:
    """Return the batch sizes under which the records were made."""
    files = {results.directory / "env" / f"{record.env}.json" for record in results}
    try:
        return sorted({int(read_json(file)["evaluation_batch_size"]) for file in files})
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{results.directory / 'env'}: not a record of the machine ({error!r})") from error


def _right_when_clean(results: ResultSet, record: CellRecord) -> int:
    """Return the mask of the images that the record's defended pipeline classifies correctly when clean."""
    where = replace(record.cell, attack=None, access=None, norm=None, eps=None)
    return next((other.outcomes.correct for other in results if other.cell == where and other.outcomes), -1)


def _export_cell(
    record: CellRecord, cell: Cell, right_when_clean: int, workshop: Workshop, options: ExportOptions
) -> Iterator[Path]:
    data = workshop.data
    assert cell.attack is not None
    assert record.outcomes is not None
    subset = data.test_subset(cell.images)
    order = data.test_order[torch.isin(data.test_order, subset)]
    if options.fallen:
        fallen = right_when_clean & ~record.outcomes.correct
        order = torch.tensor([index for index in order.tolist() if fallen >> index & 1], dtype=torch.int64)
    indices = order[: options.images].sort().values
    if not len(indices):
        return
    adversarial = workshop.adversarial(cell, cell.attack)[0][torch.searchsorted(subset, indices)]
    tensors = {
        "index": indices,
        "label": data.test_labels[indices],
        "clean": data.test_images(indices),
        "adversarial": adversarial,
    }
    pipeline = Pipeline(workshop.classifier(cell), workshop.stages(cell), PassCounter())
    if pipeline.stages:
        rng = ImageRandom(derive_seed("score", cell.key, cell.id.seed), indices.tolist())
        with torch.no_grad():
            tensors["purified"] = pipeline(adversarial.to(workshop.device), rng).purified.cpu()
    where = options.out / cell_path(cell.key, cell.id).relative_to("cells").with_suffix("")
    if "safetensors" in options.formats:
        from safetensors.torch import save

        path = where.with_name(f"{where.name}.safetensors")
        write_bytes(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}))
        yield path
    if "png" in options.formats:
        path = where.with_name(f"{where.name}.png")
        shown = [tensors[name] for name in ("clean", "adversarial", "purified") if name in tensors]
        write_bytes(path, _png(shown))
        yield path


def _png(columns: Sequence[Tensor]) -> bytes:
    """Return a PNG with one row per image and one column per kind, each magnified to at least 56 pixels."""
    import io

    from PIL import Image

    sheet = torch.cat([torch.nn.functional.pad(column, (1, 1, 1, 1), value=1.0) for column in columns], dim=3)
    rows = torch.cat(list(sheet), dim=1)
    pixels = (rows.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    factor = max(1, -(-56 // columns[0].shape[-1]))
    buffer = io.BytesIO()
    image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST).save(buffer, format="PNG")
    return buffer.getvalue()
