"""Calls all instances of the service `Orders`: `python client.py HOST:PORT ...`.

Stop one of them while it runs, and start it again: no call fails.
"""

import sys
import time

import grpc
import orders_pb2
import orders_pb2_grpc

import lbclient
import lbclient.grpc


def main(*instances):
    with lbclient.grpc.channel(list(instances), retry=lbclient.RetryPolicy(attempts=4)) as channel:
        stub = orders_pb2_grpc.OrdersStub(channel)
        for number in range(1000):
            try:
                order = stub.Get(orders_pb2.GetRequest(id=number), timeout=1.0)
            except grpc.RpcError as error:
                print(f"{number}: {error.code().name}: {error.details()}")
            else:
                print(f"{number}: served by {order.served_by}")
            time.sleep(0.1)


if __name__ == "__main__":
    main(*sys.argv[1:])
