"""fedcmp: federated pre-training of multimodal LLMs.

The vision tower and the language model are frozen; data owners ("clients") train the projector between them on
their own pairs, and a server fuses the projectors in rounds. See README.md for the commands.
"""

__version__ = "0.1.0"
