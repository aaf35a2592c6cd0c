"""Metric points and stalls as messages of the control line, and back."""

from dataclasses import asdict, fields

from onelane.telemetry.histogram import Buckets, Exemplar
from onelane.telemetry.stalls import Stall
from onelane.telemetry.stats import Instrument, Point, attributes_of
from onelane.v1 import control_pb2


def point_to_proto(point: Point) -> control_pb2.Point:
    made = control_pb2.Point(
        name=point.instrument.name,
        unit=point.instrument.unit,
        description=point.instrument.description,
        attributes=dict(point.attributes),
    )
    if isinstance(point.value, Buckets):
        made.histogram.scale, made.histogram.sum, made.histogram.zeros = (
            point.value.scale,
            point.value.sum,
            point.value.zeros,
        )
        made.histogram.counts.update(point.value.counts)
        made.histogram.exemplars.extend(control_pb2.Exemplar(**asdict(one)) for one in point.value.exemplars)
    else:
        setattr(made, point.kind, point.value)
    return made


def point_from_proto(message: control_pb2.Point) -> Point:
    instrument = Instrument(message.name, message.unit, message.description)
    kind = message.WhichOneof("value") or ""
    value = getattr(message, kind)
    if kind == "histogram":
        exemplars = tuple(Exemplar(one.value, one.trace_id, one.span_id, one.at_ns) for one in value.exemplars)
        value = Buckets(dict(value.counts), value.sum, value.zeros, value.scale, exemplars)
    return Point(instrument, kind, attributes_of(dict(message.attributes)), value)


def stall_to_proto(stall: Stall) -> control_pb2.Stall:
    return control_pb2.Stall(**asdict(stall))


def stall_from_proto(message: control_pb2.Stall) -> Stall:
    there = {one.name: getattr(message, one.name) for one in fields(Stall)}
    return Stall(**there | {"others": tuple(message.others)})
