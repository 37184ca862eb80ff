"""The table of all architectures, by name. None of them imports dualprop."""

from architecture import Architecture
from attention import ATTENTION
from convolutional import CONVOLUTIONAL
from generative import GENERATIVE
from language import LANGUAGE_MODELS
from recurrent import RECURRENT
from structured import STRUCTURED
from styles import STYLES

ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (*CONVOLUTIONAL, *GENERATIVE, *ATTENTION, *LANGUAGE_MODELS, *RECURRENT, *STRUCTURED, *STYLES)
}
