"""The data sets that come as canonical files: their names and digests, where they are, how they are
read and normalised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dualprop.data import cifar, class_names, idx

Parts = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""x_train, y_train, x_test, y_test."""


@dataclass(frozen=True)
class Source:
    """A data set of canonical files.

    Attributes:
        description: what it is, in one line.
        folders: below the data folder, in the order of search; for an `archive`, also where its
            files are within it.
        mirror: the URL of the folder that has the `archive`, else each file as FILE.gz.
        sha256: of each file's uncompressed content, by its name.
        sizes: in bytes, of each file that is downloaded: the archive's, else of the uncompressed
            content.
        parse: reads the files' contents, by their names.
        mean: of the training pixels over 255, of each channel or of all, in the field's rounding.
        std: of the same.
        archive: name and SHA-256 of the .tar.gz that holds all the files.
        classes: what they are called; empty where they are numbers.
    """

    description: str
    folders: tuple[str, ...]
    mirror: str
    sha256: dict[str, str]
    sizes: dict[str, int]
    parse: Callable[[str, dict[str, bytes]], Parts]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    archive: tuple[str, str] | None = None
    classes: tuple[str, ...] = ()


_MNIST_SIZES = {
    "train-images-idx3-ubyte": 47_040_016,
    "train-labels-idx1-ubyte": 60_008,
    "t10k-images-idx3-ubyte": 7_840_016,
    "t10k-labels-idx1-ubyte": 10_008,
}

SOURCES = {
    "mnist": Source(
        description="handwritten digits, 28×28 grey, 60 000 + 10 000, 10 classes",
        folders=("mnist", "MNIST/raw", "."),
        mirror="https://ossci-datasets.s3.amazonaws.com/mnist",
        sha256={
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
        sizes=_MNIST_SIZES,
        parse=idx.parts,
        mean=(0.1307,),
        std=(0.3081,),
    ),
    "fashion-mnist": Source(
        description="Zalando's articles, 28×28 grey, 60 000 + 10 000, 10 classes",
        folders=("fashion-mnist", "FashionMNIST/raw", "."),
        # The authors' repository. Their S3 website, which is named everywhere, has no HTTPS.
        mirror="https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
        sha256={
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        sizes=_MNIST_SIZES,
        parse=idx.parts,
        mean=(0.2860,),
        std=(0.3530,),
        classes=class_names.FASHION_MNIST,
    ),
    "cifar10": Source(
        description="tiny photographs, 32×32 colour, 50 000 + 10 000, 10 classes",
        folders=("cifar-10-batches-py", "cifar10", "cifar10/cifar-10-batches-py", "."),
        mirror="https://www.cs.toronto.edu/~kriz",
        sha256={
            "data_batch_1": "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
            "data_batch_2": "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
            "data_batch_3": "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
            "data_batch_4": "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
            "data_batch_5": "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
            "test_batch": "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831",
        },
        sizes={"cifar-10-python.tar.gz": 170_498_071},
        parse=cifar.cifar10,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
        archive=("cifar-10-python.tar.gz", "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"),
        classes=class_names.CIFAR10,
    ),
    # Digests as published (among others by torchvision and Keras); no copy of the files was at hand
    # to compute them from.
    "cifar100": Source(
        description="tiny photographs, 32×32 colour, 50 000 + 10 000, 100 classes",
        folders=("cifar-100-python", "cifar100", "cifar100/cifar-100-python", "."),
        mirror="https://www.cs.toronto.edu/~kriz",
        sha256={
            "train": "735e79b04f092ca3d2e6d07f368c0a7d70d48c48d28865950cc24454cf45129b",
            "test": "4b67687d9933c4db8f0831104447f15b93774f4f464bd0516f0f0f2ac83b7864",
        },
        sizes={"cifar-100-python.tar.gz": 169_001_437},
        parse=cifar.cifar100,
        mean=(0.5074, 0.4867, 0.4411),
        std=(0.2011, 0.1987, 0.2025),
        archive=("cifar-100-python.tar.gz", "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"),
        classes=class_names.CIFAR100,
    ),
}
