"""Read profiles of TensorFlow's profiler (``*.xplane.pb``).

The controller has neither TensorFlow nor protobuf, so this reads the wire format of the message ``XSpace``
(``tsl/profiler/protobuf/xplane.proto``). Statistics of events are read when they are asked for: most events need none.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

Value = int | float | str
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
# Fields of the messages.
PLANES = 1
PLANE_NAME, LINES, EVENT_METADATA, STAT_METADATA, PLANE_STATS = 2, 3, 4, 5, 6
LINE_NAME, LINE_TIMESTAMP_NS, EVENTS = 2, 3, 4
EVENT_METADATA_ID, OFFSET_PS, DURATION_PS, EVENT_STATS = 1, 2, 3, 4
STAT_METADATA_ID, DOUBLE, UNSIGNED, SIGNED, TEXT, RAW, REFERENCE = 1, 2, 3, 4, 5, 6, 7
KEY, ENTRY = 1, 2  # of a map
METADATA_NAME = 2
START_TIME = "profile_start_time"  # statistic of the profile: nanoseconds since 1970


class Event(NamedTuple):
    """A period in a line of a plane; ``begun`` in nanoseconds since the beginning of the profile, ``took`` in nanoseconds."""

    plane: Plane
    line: str
    name: str
    begun: float
    took: float
    raw_stats: tuple[bytes, ...]

    def stats(self) -> dict[str, Value]:
        """Return the statistics of the event."""
        return dict(self.plane.stat(raw) for raw in self.raw_stats)


class Plane:
    """Part of a profile: the events of a device or of the program, in lines (threads or GPU streams)."""

    def __init__(self, raw: bytes) -> None:
        self.name = ""
        self.lines: list[bytes] = []
        self.raw_stats: list[bytes] = []
        self.event_names: dict[int, str] = {}
        self.stat_names: dict[int, str] = {}
        for number, value in fields(raw):
            if number == PLANE_NAME:
                self.name = text(value)
            elif number == LINES:
                self.lines.append(part(value))
            elif number == PLANE_STATS:
                self.raw_stats.append(part(value))
            elif number in (EVENT_METADATA, STAT_METADATA):
                names = self.event_names if number == EVENT_METADATA else self.stat_names
                entry = dict(fields(part(value)))
                names[whole(entry.get(KEY, 0))] = text(dict(fields(part(entry.get(ENTRY, b"")))).get(METADATA_NAME, b""))

    def stats(self) -> dict[str, Value]:
        """Return the statistics of the plane."""
        return dict(self.stat(raw) for raw in self.raw_stats)

    def stat(self, raw: bytes) -> tuple[str, Value]:
        """Return name and value of a statistic."""
        name, found = "", 0  # type: str, Value
        for number, value in fields(raw):
            if number == STAT_METADATA_ID:
                name = self.stat_names.get(whole(value), "")
            elif number == DOUBLE:
                found = value if isinstance(value, float) else 0.0
            elif number == REFERENCE:
                found = self.stat_names.get(whole(value), "")
            elif number == SIGNED:
                found = signed(whole(value))
            elif number == UNSIGNED:
                found = whole(value)
            elif number == TEXT:
                found = text(value)
        return name, found

    def events(self) -> Iterator[Event]:
        """Return the events of all lines."""
        for raw in self.lines:
            line, origin, events = "", 0, []
            for number, value in fields(raw):
                if number == LINE_NAME:
                    line = text(value)
                elif number == LINE_TIMESTAMP_NS:
                    origin = signed(whole(value))
                elif number == EVENTS:
                    events.append(part(value))
            for event in events:
                name, offset, took, stats = 0, 0, 0, []
                for number, value in fields(event):
                    if number == EVENT_METADATA_ID:
                        name = whole(value)
                    elif number == OFFSET_PS:
                        offset = signed(whole(value))
                    elif number == DURATION_PS:
                        took = whole(value)
                    elif number == EVENT_STATS:
                        stats.append(part(value))
                yield Event(self, line, self.event_names.get(name, ""), origin + offset / 1e3, took / 1e3, tuple(stats))


def read(path: Path) -> tuple[int, list[Plane]]:
    """Return when a profile began, in nanoseconds since 1970, and its planes; raise ValueError if it is invalid."""
    planes = [Plane(part(value)) for number, value in fields(path.read_bytes()) if number == PLANES]
    began = next((plane.stats()[START_TIME] for plane in planes if START_TIME in plane.stats()), None)
    if not isinstance(began, int):
        raise ValueError(f"{path.name} has no {START_TIME}")
    return began, planes


def fields(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """Return number and value of each field of a message; raise ValueError if it is invalid."""
    place, size = 0, len(data)
    while place < size:
        tag, place = varint(data, place)
        kind = tag & 7
        if kind == VARINT:
            value, place = varint(data, place)
            yield tag >> 3, value
            continue
        length, place = varint(data, place) if kind == BYTES else ({FIXED64: 8, FIXED32: 4}.get(kind, size + 1), place)
        end = place + length
        if end > size:
            raise ValueError("the profile is incomplete or damaged")
        yield tag >> 3, data[place:end] if kind == BYTES else struct.unpack("<d" if kind == FIXED64 else "<f", data[place:end])[0]
        place = end


def varint(data: bytes, place: int) -> tuple[int, int]:
    """Return a number of variable length and the place after it."""
    value = shift = 0
    while shift < 70:
        if place >= len(data):
            break
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7
    raise ValueError("the profile is incomplete or damaged")


def signed(value: int) -> int:
    """Return a 64-bit number with its sign."""
    return value - (1 << 64) if value >> 63 else value


def whole(value: object) -> int:
    """Return a field's value if it is a whole number; raise ValueError if not."""
    if not isinstance(value, int):
        raise ValueError("the profile is damaged: a number is missing")
    return value


def part(value: object) -> bytes:
    """Return a field's value if it is bytes; raise ValueError if not."""
    if not isinstance(value, bytes):
        raise ValueError("the profile is damaged: a part is missing")
    return value


def text(value: object) -> str:
    """Return a field's value as text; raise ValueError if it is a number."""
    return part(value).decode(errors="replace")
