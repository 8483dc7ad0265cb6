r"""Messages of gRPC APIs: `*.proto` are written by hand, `*_pb2.py*` generated from them.

To regenerate, in the project's folder, with grpcio-tools installed:

    python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. \
        ig/containers/runtimes/messages/*.proto

protobuf must be at least as new as the one named at the top of the generated files.
"""
