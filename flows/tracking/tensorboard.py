"""TensorBoard: event files, a scalar a name; what is there is read back."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any

from opd_core.extensions import TrackerKind
from opd_core.tracker import About, Axis, Point


class TensorBoard:
    def __init__(self, about: About) -> None:
        self._about = about
        self._known = _read(about.folder / about.name)

    def has(self, axis: Axis, name: str, number: int) -> bool:
        return (name, number) in self._known

    def log(self, point: Point) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=n, simple_value=v) for n, v in point.values.items()]
        self._writer.add_event(
            Event(wall_time=point.at.timestamp(), step=point.number, summary=Summary(value=values))
        )
        self._writer.flush()

    def finish(self) -> None:
        if "_writer" in self.__dict__:
            self._writer.close()

    @cached_property
    def _writer(self) -> Any:
        """Its file begins with the first point that is new."""
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        writer = EventFileWriter(str(self._about.folder / self._about.name))
        if not self._known:
            writer.add_event(_description(self._about))
        return writer


def _description(about: About) -> Any:
    """The config, under Text."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto

    lines = [f"    {key} = {json.dumps(value)}" for key, value in about.config.items()]
    text = TensorProto(dtype="DT_STRING", string_val=["\n".join(lines).encode()])
    text.tensor_shape.dim.add(size=1)
    of_text = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    value = Summary.Value(tag="config", tensor=text, metadata=of_text)
    return Event(step=0, summary=Summary(value=[value]))


def _read(folder: Any) -> set[tuple[str, int]]:
    """(name, number) of every scalar in the event files of a folder; the last one may be cut."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return {
        (value.tag, event.step)
        for file in sorted(folder.glob("events.out.tfevents.*"))
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
        if value.tag != "config"
    }


TRACKER = TrackerKind(
    about="Event files for `tensorboard --logdir`.",
    opened=TensorBoard,
    needs=("tensorboard",),
    look="tensorboard --logdir {folder}",
)
