"""Datasets that Hugging Face's own package has saved to disk."""

import numpy as np
import pytest

from dualprop.data import Reading, load
from dualprop.errors import DataError

# Of the package's own pickling, when the tests write a dataset.
pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore:Cannot (locate|pickle)")]
RANDOM = np.random.default_rng(0)
COUNT = 24
X = RANDOM.normal(size=COUNT)
KINDS = np.arange(COUNT) % 3


def saved(path, images: bool, parts: bool):
    """A dataset of numbers or of images, whole or in two parts."""
    import datasets
    from PIL import Image

    label = datasets.ClassLabel(names=["cat", "dog", "ant"])
    if images:
        pixels = RANDOM.integers(0, 256, (COUNT, 6, 5, 3), dtype=np.uint8)
        content = {"image": [Image.fromarray(each) for each in pixels], "label": KINDS.tolist()}
        features = datasets.Features({"image": datasets.Image(), "label": label})
    else:
        pixels = X
        content = {"x": X.tolist(), "label": KINDS.tolist()}
        features = datasets.Features({"x": datasets.Value("float64"), "label": label})
    made = datasets.Dataset.from_dict(content, features=features)
    if parts:
        made = datasets.DatasetDict(train=made.select(range(18)), test=made.select(range(18, COUNT)))
    made.save_to_disk(path)
    return pixels


@pytest.mark.parametrize("parts", [False, True])
def test_tables_and_images_are_read_with_the_names_of_their_classes(tmp_path, parts):
    """Classes in another order than the package's would be named wrongly in every report."""
    pixels = saved(tmp_path / "images", images=True, parts=parts)
    splits = load(str(tmp_path / "images"))
    assert splits.task.names == ("cat", "dog", "ant")
    assert splits.input_shape == (3, 6, 5)
    of_pixels = {each.transpose(2, 0, 1).tobytes(): kind for each, kind in zip(pixels, KINDS, strict=True)}
    for part in (splits.train, splits.validation, splits.test):
        assert [of_pixels[x.tobytes()] for x in part.x.numpy()] == part.y.tolist()
    assert not parts or len(splits.test) == 6
    saved(tmp_path / "table", images=False, parts=parts)
    splits = load(str(tmp_path / "table"))
    kind_of = dict(zip(np.float32(X).tolist(), KINDS.tolist(), strict=True))
    names = ("cat", "dog", "ant")
    for part in (splits.train, splits.validation, splits.test):
        told = [splits.task.names[k] for k in part.y.tolist()]
        assert told == [names[kind_of[x]] for x in part.x[:, 0].tolist()]


def test_damage_and_a_missing_class_are_one_line(tmp_path):
    saved(tmp_path / "own", images=True, parts=False)
    with pytest.raises(DataError, match="Name the class"):
        load(str(tmp_path / "own"), reading=Reading(target="kind"))
    for path in (tmp_path / "own").glob("*.arrow"):
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match="can't be read as a saved dataset"):
        load(str(tmp_path / "own"))
