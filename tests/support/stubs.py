"""The generated stubs of `protos/testing.proto`, made anew in each process, so that they fit the
protobuf that is installed."""

from __future__ import annotations

import atexit
import importlib
import shutil
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

__all__ = ["FOLDER", "messages", "services"]

_PROTOS = Path(__file__).with_name("protos")

FOLDER = Path(tempfile.mkdtemp(prefix="lbclient-stubs-"))
"""Where they are. Servers in processes of their own import them from here."""

atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
if protoc.main(
    [
        "protoc",
        f"--proto_path={_PROTOS}",
        f"--python_out={FOLDER}",
        f"--grpc_python_out={FOLDER}",
        "testing.proto",
    ]
):
    raise RuntimeError("the stubs could not be generated")
sys.path.append(str(FOLDER))
messages = importlib.import_module("testing_pb2")
services = importlib.import_module("testing_pb2_grpc")
