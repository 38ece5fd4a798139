"""Loading a vision-language model's processor."""

from typing import Any


def load_processor(location: str, config: Any) -> Any:
    """Return the processor of a model, its tokenizer padding on the left.

    transformers reads videos with torchvision only. Where that is not installed, a processor that
    knows videos is loaded without that part: pictures need PIL alone.

    Args:
        location: folder or hub id.
        config: the model's configuration.
    """
    from transformers import AutoProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.utils.import_utils import is_torchvision_available

    kind: Any = AutoProcessor
    mapping: Any = PROCESSOR_MAPPING
    if not is_torchvision_available() and type(config) in mapping:
        kind = without_video(mapping[type(config)])
    processor = kind.from_pretrained(location)
    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token_id is None:  # a processor pads, whatever is masked then
        processor.tokenizer.pad_token = processor.tokenizer.eos_token or processor.image_token
    return processor


def without_video(kind: type[Any]) -> type[Any]:
    """Return a processor class that has no video part, of the same name."""

    def get_attributes(cls: Any) -> list[str]:
        return [name for name in kind.get_attributes() if name != "video_processor"]

    return type(kind.__name__, (kind,), {"get_attributes": classmethod(get_attributes)})
