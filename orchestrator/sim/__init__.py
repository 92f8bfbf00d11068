"""The same brain on a virtual clock: modelled engines and a modelled network behind a gateway's own messages."""
