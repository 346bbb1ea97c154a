"""The judge: reconstructions beside originals, and what follows from that."""
