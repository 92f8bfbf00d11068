"""An emulator of Kubernetes' API server, as far as helm and kubectl need one to install, change and remove this chart.

Objects are validated against Kubernetes' own schemas; merging, field ownership and watches are written after its
documentation. No pod ever runs: what controllers would report of one is made up. It was never compared with a real
cluster, so what passes here says that the clients' requests make sense, not that Kubernetes runs the result.
"""
