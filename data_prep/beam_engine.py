"""The pipeline as Apache Beam transforms: the direct runner on one machine, any runner (Dataflow, Flink, Spark) by flags.

    --config.engine=beam --config.beam.args='("--direct_num_workers=2", "--direct_running_mode=multi_processing")'

    --config.engine=beam --config.beam.folder=gs://BUCKET/beam --config.cache=gs://BUCKET/replies --config.videos=gs://BUCKET/videos \
        --config.beam.args='("--runner=DataflowRunner", ...)'

Each stage is a transform of its own: records with a rejection pass through untouched. Replies come from the shared reply cache
(`config.cache`: a SQLite file on one machine, a folder on an object store for many), so that a bundle that a runner repeats pays
for nothing twice; records are written by key, so that it doubles nothing either. Batches of records share an event loop, so that
their calls overlap.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import ml_collections
from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions
from etils import epath

from data_prep import config as configs
from data_prep import pipeline
from data_prep.engine import Progress
from data_prep.models.base import ModelError
from data_prep.patience import EndpointFailed
from data_prep.schema import Record, Triplet
from data_prep.stages.base import Context, Stage
from data_prep.store import Finished, Store


class RunStage(beam.DoFn):
    """One stage over batches of records."""

    def __init__(self, stage: Stage, config: str, workdir: str):
        """Keeps what a worker needs to open its own client.

        Args:
          stage: the stage.
          config: the run's config as JSON; the API key is not in it, workers read it from their own environment.
          workdir: the run's folder.
        """
        self._stage, self._config, self._workdir = stage, config, workdir
        self._context: Context | None = None

    def setup(self) -> None:
        """Opens the loop and the client of this worker."""
        self._loop = asyncio.new_event_loop()
        config = ml_collections.ConfigDict(json.loads(self._config))
        self._context = configs.context(config, self._workdir)

    def process(self, batch: list[str]) -> Iterator[str]:
        """Records as lines of JSON, through the stage.

        Raises:
          EndpointFailed: a call got no reply; the runner tries the bundle again, and what was paid for is in the cache. A video that cannot
            be read is no such error: it costs its own records, which go no further.
        """
        records = [pipeline.loads(text) for text in batch]
        for record in self._loop.run_until_complete(self._run(records)):
            yield pipeline.dumps(record)

    async def _run(self, records: list[Record]) -> list[Record]:
        results = await asyncio.gather(
            *(pipeline.process(r, self._context, (self._stage,)) for r in records),
            return_exceptions=True,
        )
        kept = []
        for record, result in zip(records, results, strict=True):
            if isinstance(result, ModelError):
                if result.kind != "storage":
                    # Beam sends errors between machines: one that pickles, with the text only.
                    raise EndpointFailed(result.advice)
                logging.warning("row %s has no verdict: %s", record.triplet.id, result)
            elif isinstance(result, BaseException):
                raise result
            else:
                kept.append(result)
        return kept

    def teardown(self) -> None:
        """Lets the client go."""
        if self._context is not None:
            self._loop.run_until_complete(self._context.caller.client.close())
            self._context.caller.cache.close()
            self._loop.close()


class Begin(beam.DoFn):
    """A triplet's line as a record's line."""

    def __init__(self, fingerprint: str):
        self._fingerprint = fingerprint

    def process(self, line: str) -> Iterator[str]:
        """One record a triplet."""
        triplet = Triplet.from_json(json.loads(line))
        yield pipeline.dumps(pipeline.begin(triplet, self._fingerprint))


class Synthesize(beam.PTransform):
    """Triplets (lines of JSON) to finished records (lines of JSON), one for each key."""

    def __init__(self, *, config: str, workdir: str, fingerprint: str, batch: int):
        """See `RunStage`; `batch` records are in one worker's loop at once."""
        super().__init__()
        self._config, self._workdir = config, workdir
        self._fingerprint, self._batch = fingerprint, batch

    def expand(self, triplets: beam.PCollection) -> beam.PCollection:
        """See the module's text."""
        records = triplets | beam.ParDo(Begin(self._fingerprint)) | "spread" >> beam.Reshuffle()
        for stage in pipeline.STAGES:
            records = (
                records
                | f"batch for {stage.name}"
                >> beam.BatchElements(min_batch_size=self._batch, max_batch_size=self._batch)
                | stage.name >> beam.ParDo(RunStage(stage, self._config, self._workdir))
            )
        return (
            records
            | "by key" >> beam.Map(lambda text: (json.loads(text)["key"], text))
            | "once" >> beam.GroupByKey()
            | "one of each" >> beam.Map(lambda pair: min(pair[1]))
        )


def run(
    config: ml_collections.ConfigDict, workdir: epath.PathLike, *, fingerprint: str
) -> Progress:
    """Takes every admitted triplet without a record through the stages on a Beam runner, then stores what came out.

    Raises:
      EndpointFailed: the endpoint did not answer, after the runner's own retries. Stored replies are kept.
    """
    workdir = epath.Path(workdir)
    store = Store(workdir)
    folder = configs.exchange(config, workdir) / uuid.uuid4().hex
    try:
        admitted, done, _ = store.counts()
        triplets = folder / "triplets.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        with triplets.open("w") as out:
            for _, triplet in store.todo():
                out.write(json.dumps(triplet.to_json(), ensure_ascii=False) + "\n")
        _pipeline(config, workdir, folder, fingerprint)
        context = configs.context(config, workdir)
        context.caller.cache.close()  # rows are put together here; nothing is asked
        progress = Progress(total=admitted, done=done)
        for batch in _batches(_lines(folder), 256):
            ended = [_finished(text, context) for text in batch]
            store.put(ended)
            progress.done += len(ended)
            progress.accepted += sum(bool(f.row) for f in ended)
        progress.failed = admitted - progress.done
        if progress.failed:
            lost = ModelError(
                "storage", "their videos could not be read; the workers' logs name them"
            )
            progress.failure = lost.advice
        return progress
    finally:
        store.close()
        if folder.exists():
            folder.rmtree()


def _pipeline(config: ml_collections.ConfigDict, workdir: epath.Path, folder: epath.Path, fingerprint: str) -> None:  # fmt: skip
    options = PipelineOptions(list(config.beam.args))
    options.view_as(SetupOptions).save_main_session = False
    synthesize = Synthesize(
        config=config.to_json_best_effort(),
        workdir=os.fspath(workdir),
        fingerprint=fingerprint,
        batch=config.beam.batch,
    )
    try:
        with beam.Pipeline(options=options) as root:
            _ = (
                root
                | "read" >> beam.io.ReadFromText(os.fspath(folder / "triplets.jsonl"))
                | "synthesize" >> synthesize
                | "write" >> beam.io.WriteToText(os.fspath(folder / "records"), ".jsonl")
            )
    except (RuntimeError, EndpointFailed) as error:
        if "EndpointFailed" in f"{type(error).__name__} {error}":
            raise EndpointFailed(str(error).splitlines()[-1]) from None
        raise


def _lines(folder: epath.Path) -> Iterator[str]:
    for path in sorted(folder.glob("records*.jsonl")):
        with path.open("r") as file:
            for text in file:
                yield text.rstrip("\n")


def _finished(text: str, context: Context) -> Finished:
    record = pipeline.loads(text)
    row: Any = pipeline.line(record, context)
    return Finished(record, text, row or "")


def _batches(lines: Iterable[str], size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in lines:
        batch.append(text)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
