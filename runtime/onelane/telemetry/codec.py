"""Metric points and stalls as messages of the control connection, and back."""

from dataclasses import asdict, fields

from onelane.telemetry.histogram import Buckets, Exemplar
from onelane.telemetry.stalls import Stall
from onelane.telemetry.stats import Attributes, AttributeValue, Instrument, Point, attributes_of
from onelane.v1 import control_pb2

_ATTRIBUTE_FIELDS = {str: "attributes", int: "integers", float: "numbers", bool: "flags"}


def point_to_proto(point: Point) -> control_pb2.Point:
    message = control_pb2.Point(
        name=point.instrument.name,
        unit=point.instrument.unit,
        description=point.instrument.description,
    )
    for name, attribute in point.attributes:
        getattr(message, _ATTRIBUTE_FIELDS[type(attribute)])[name] = attribute
    if isinstance(point.value, Buckets):
        message.histogram.scale, message.histogram.sum, message.histogram.zeros = (
            point.value.scale,
            point.value.sum,
            point.value.zeros,
        )
        message.histogram.counts.update(point.value.counts)
        message.histogram.exemplars.extend(
            control_pb2.Exemplar(**asdict(exemplar)) for exemplar in point.value.exemplars
        )
    else:
        setattr(message, point.kind, point.value)
    return message


def point_from_proto(message: control_pb2.Point) -> Point:
    instrument = Instrument(message.name, message.unit, message.description)
    kind = message.WhichOneof("value") or ""
    value = getattr(message, kind)
    if kind == "histogram":
        exemplars = tuple(Exemplar(e.value, e.trace_id, e.span_id, e.at_ns) for e in value.exemplars)
        value = Buckets(dict(value.counts), value.sum, value.zeros, value.scale, exemplars)
    return Point(instrument, kind, _attributes(message), value)


def _attributes(message: control_pb2.Point) -> Attributes:
    values: dict[str, AttributeValue] = dict(message.attributes)
    for typed in (message.integers, message.numbers, message.flags):
        values.update(typed)
    return attributes_of(values)


def stall_to_proto(stall: Stall) -> control_pb2.Stall:
    return control_pb2.Stall(**asdict(stall))


def stall_from_proto(message: control_pb2.Stall) -> Stall:
    values = {field.name: getattr(message, field.name) for field in fields(Stall)}
    return Stall(**values | {"others": tuple(message.others)})
