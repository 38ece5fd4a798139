"""Samples in a store: the same after reading, with images of their own."""

from dataclasses import replace

from PIL import Image as PILImage

from lcia.data import Image, Message, Sample, Task
from lcia.data.images import check_images
from lcia.files import place_copy
from lcia.store.samples import read_samples, write_samples


def test_samples_and_their_images_survive_the_loss_of_the_originals(tmp_path):
    originals = tmp_path / "originals"
    originals.mkdir()
    for name, colour in {"a.PNG": "red", "b.png": "blue", "c.png": "blue"}.items():
        PILImage.new("RGB", (4, 4), colour).save(originals / name)

    def about(*names: str) -> Sample:
        images = tuple(Image(path=str(originals / name), at=i) for i, name in enumerate(names))
        asked = Message(role="user", content="Is it?", images=images)
        rules = Message(role="system", content="Be brief.")
        return Sample(id="-".join(names), messages=(rules, asked), answers=("yes", "yes"))

    samples = (about("a.PNG", "b.png"), about("c.png"), replace(about(), instruction="Is it?"))
    task = check_images([Task(name="t", train=samples, test=samples)])[0]
    (tmp_path / "draft").mkdir()
    write_samples(tmp_path / "draft" / "samples.jsonl", task.test)
    place_copy(tmp_path / "draft", tmp_path / "kept")
    for path in originals.iterdir():
        path.unlink()

    found = read_samples(tmp_path / "kept" / "samples.jsonl")
    assert replace(task, train=found, test=found).fingerprint() == task.fingerprint()
    assert len(list((tmp_path / "kept" / "images").iterdir())) == 2, "equal images once"
    for image in (image for sample in found for image in sample.images):
        with PILImage.open(image.path) as opened:
            assert opened.size == (4, 4)
