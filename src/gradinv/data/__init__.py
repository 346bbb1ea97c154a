"""Images with labels, and the client batches drawn from them.

Pixels are floats in [0, 1] everywhere outside an attack's search space. Three sources look alike
from outside: class folders of PNG or JPEG files, the IDX files of the MNIST family, and the
embedded sample of Fashion-MNIST. Files are listed at once but decoded only when asked for.
"""

from gradinv.data.batch import ClientBatch, fingerprint_batches
from gradinv.data.folder import IMAGE_SUFFIXES
from gradinv.data.images import ImageSet
from gradinv.data.loading import EMBEDDED, load_images

__all__ = [
    "EMBEDDED",
    "IMAGE_SUFFIXES",
    "ClientBatch",
    "ImageSet",
    "fingerprint_batches",
    "load_images",
]
