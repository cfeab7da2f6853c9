"""An instance of the service `Orders`: `python server.py PORT`.

A deadline that its caller sets also bounds the calls that it makes itself.
"""

import sys
from concurrent import futures

import grpc
import orders_pb2
import orders_pb2_grpc

import lbclient.grpc


class Orders(orders_pb2_grpc.OrdersServicer):
    def __init__(self, name):
        self._name = name

    def Get(self, request, context):
        return orders_pb2.Order(id=request.id, served_by=self._name)

    def Create(self, request, context):
        return orders_pb2.Order(id=request.id, served_by=self._name)

    def Watch(self, request, context):
        for number in range(3):
            yield orders_pb2.Order(id=number, served_by=self._name)


def main(port):
    server = grpc.server(
        futures.ThreadPoolExecutor(16), interceptors=[lbclient.grpc.DeadlineInterceptor()]
    )
    orders_pb2_grpc.add_OrdersServicer_to_server(Orders(port), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main(*sys.argv[1:])
