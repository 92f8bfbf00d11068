"""Wire formats. The ``*_pb2*`` modules are built from the ``.proto`` files beside this one (``make proto``)."""
