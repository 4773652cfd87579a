"""What the names of class folders stand for, for a teacher of so many classes."""

import io

import numpy as np
import pytest
from PIL import Image
from torch import nn

from zsq.config import ImagesConfig
from zsq.contract import Teacher
from zsq.core.errors import ImagesError, OptionError
from zsq.core.imagespec import ImageSpec
from zsq.images.class_names import WORDNET_IDS, class_names_of
from zsq.images.imageset import said
from zsq.images.sources import images_for, load_images
from zsq.tasks import TASKS

SPEC = ImageSpec(size=(4, 4), mean=(0.5,) * 3, std=(0.25,) * 3)


def teacher(num_classes, classes=None, task="classify"):
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, num_classes))
    return Teacher("toy", network, SPEC, num_classes, "0" * 64, task=TASKS[task](), classes=classes)


@pytest.fixture
def folders(tmp_path):
    """Makes class folders of these names, one photo in each."""

    def make(*names):
        for name in names:
            (tmp_path / "val" / name).mkdir(parents=True)
            buffer = io.BytesIO()
            Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(buffer, "PNG")
            (tmp_path / "val" / name / "a.png").write_bytes(buffer.getvalue())
        return tmp_path / "val"

    return make


def labels(network, source, class_names=None, **options):
    return images_for(network, source, ImagesConfig(class_names=class_names), **options).labels.tolist()


def test_wordnet_ids_and_names_of_imagenet_are_its_classes(folders):
    imagenet = teacher(1000)
    found = images_for(
        imagenet, folders("Cardigan", "cardigan", "great_white_shark", "n01443537"), labelled=True
    )
    assert found.labels.tolist() == [264, 474, 2, 1]
    assert said(found) == []


def test_the_shipped_list_is_in_torchvisions_order():
    from importlib.resources import files

    from torchvision.models._meta import _IMAGENET_CATEGORIES as names

    ids = files("zsq.images").joinpath(WORDNET_IDS).read_text().split()
    assert len(set(ids)) == len(names) == 1000 and sorted(ids) == ids
    known = class_names_of(teacher(1000)).known
    # Classes that everybody knows by number.
    for wordnet_id, name, label in (
        ("n01440764", "tench", 0),
        ("n02123045", "tabby", 281),
        ("n03594945", "jeep", 609),
        ("n15075141", "toilet tissue", 999),
    ):
        assert known[wordnet_id] == known[name] == label == ids.index(wordnet_id)


def test_some_wordnet_ids_of_another_teacher_are_not_numbered_from_0(folders):
    source = folders("n01443537", "n07920052")
    with pytest.raises(
        ImagesError, match=r"2 class folders \(n01443537, n07920052\) for 10 classes"
    ) as caught:
        images_for(teacher(10), source, labelled=True)
    assert "--class-names FILE or by-order" in str(caught.value) and caught.value.exit_code == 2
    assert labels(teacher(10), source) == [-1, -1]
    assert labels(teacher(10), source, labelled=True, class_names="by-order") == [0, 1]


def test_more_folders_than_classes_are_refused_too(folders):
    with pytest.raises(ImagesError, match=r"3 class folders .* for 2 classes"):
        images_for(teacher(2), folders("ant", "bee", "cat"), labelled=True)


def test_as_many_folders_as_classes_count_by_rank_and_one_line_says_so(folders):
    source = folders("cat", "ant", "bee")
    found = images_for(teacher(3), source, labelled=True)
    assert found.labels.tolist() == [0, 1, 2]
    (line,) = said(found, found)
    assert line == f"{source}: class folders count by the order of their names: ant is 0, cat is 2"


def test_the_cards_own_list_wins(folders):
    own = teacher(3, classes=("cat", "big dog", "ant"))
    assert labels(own, folders("ant", "big_dog"), labelled=True) == [2, 1]


def test_a_name_that_is_not_on_the_list_is_a_mistake(folders):
    source = folders("ant", "cats")
    own = teacher(2, classes=("cat", "ant"))
    with pytest.raises(ImagesError, match=r"class folder 'cats'.*did you mean 'cat'\?"):
        images_for(own, source, labelled=True)
    assert labels(own, source) == [-1, -1]


def test_a_file_names_the_classes(folders, tmp_path):
    source = folders("ant", "cat")
    listed = tmp_path / "names.txt"
    listed.write_text("cat\nbee\n\nant\n")
    assert labels(teacher(3), source, labelled=True, class_names=str(listed)) == [2, 0]
    with pytest.raises(OptionError, match="lists 3 different names of classes; expected 4"):
        labels(teacher(4), source, str(listed))
    listed.write_text("cat\ncat\nant\n")
    with pytest.raises(OptionError, match="lists 2 different names"):
        labels(teacher(3), source, str(listed))


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_list_that_cannot_be_read_is_one_line(content, folders, tmp_path):
    listed = tmp_path / "names.txt"
    if content is not None:
        listed.write_bytes(content)
    with pytest.raises(OptionError, match=r"names\.txt") as caught:
        labels(teacher(3), folders("ant"), str(listed))
    assert "\n" not in str(caught.value)


def test_numbers_are_numbers_whatever_the_list(folders):
    source = folders("1", "002")
    for own in (teacher(3), teacher(1000), teacher(3, classes=("cat", "ant", "bee"))):
        assert labels(own, source, labelled=True) == [2, 1]
    with pytest.raises(ImagesError, match="class folder '002'; expected 0 to 1, the teacher's 2 classes"):
        images_for(teacher(2), source, labelled=True)


def test_what_picks_by_label_needs_labels(folders):
    source = folders("ant", "bee")
    for options in ({"source": f"{source}#labels=0-0"}, {"source": source, "one_per_class": True}):
        with pytest.raises(ImagesError, match="2 class folders"):
            images_for(teacher(10), **options)


def test_identities_need_no_names(folders):
    embedder = teacher(16, task="embed")
    source = folders("ann", "bob")
    assert labels(embedder, source, labelled=True) == [0, 1]
    with pytest.raises(OptionError, match="an embedding teacher has no classes"):
        labels(embedder, source, "by-order")


def test_without_a_teacher_names_count_by_rank(folders):
    assert load_images(folders("bee", "ant")).labels.tolist() == [0, 1]
