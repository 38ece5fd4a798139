"""Pictures inside an HTML page."""

import base64
import io

from lcia.data.images import open_image
from lcia.data.sample import Image

LONGEST_SIDE = 224


def inline(image: Image) -> str:
    """Return a picture, made small, as a ``data:`` address."""
    picture = open_image(image.path)
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
