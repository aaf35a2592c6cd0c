"""A grpcio servicer from before onelane: blocking style, knows nothing of us."""

from collections.abc import Iterator

import grpc

from tests.greeter.v1 import greeter_pb2, greeter_pb2_grpc


class Greeter(greeter_pb2_grpc.GreeterServicer):
    def Hello(self, request: greeter_pb2.HelloRequest, context: grpc.ServicerContext) -> greeter_pb2.HelloReply:
        if not request.name:
            context.set_code(grpc.StatusCode.INVALID_ARGUMENT)
            context.set_details("name, please")
            return greeter_pb2.HelloReply()
        return greeter_pb2.HelloReply(text=f"hello {request.name}")

    def Everyone(
        self, request_iterator: Iterator[greeter_pb2.HelloRequest], context: grpc.ServicerContext
    ) -> Iterator[greeter_pb2.HelloReply]:
        for request in request_iterator:
            yield greeter_pb2.HelloReply(text=f"hello {request.name}")
