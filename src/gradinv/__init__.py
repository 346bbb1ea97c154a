"""How much of the clients' data can a curious server rebuild from federated-learning updates?"""

__version__ = "0.1.0"
