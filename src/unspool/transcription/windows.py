"""Windows: the pieces of audio that a model reads at once.

Owns: cutting features into windows. Does not know: tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from unspool.types import Source


class AudioWindow(NamedTuple):
    """One window.

    source: its features, filled up with silence. start: its first frame in the audio. num_frames: frames of audio.
    """

    source: Source
    start: int
    num_frames: int


class Audio:
    """The features of one audio. Asking twice for the same window returns the same object.

    Args:
        features: [1, mel bins, frames].
        num_frames: frames that count, at most those of `features`.
        input_name: of the encoder's argument.
        window_frames: frames that the encoder reads at once.
    """

    def __init__(self, features: torch.Tensor, num_frames: int, *, input_name: str, window_frames: int) -> None:
        self.num_frames = num_frames
        self._features, self._input_name, self._size = features, input_name, window_frames
        self._newest: AudioWindow | None = None

    def window(self, start: int) -> AudioWindow:
        """Return the window that begins at a frame."""
        if self._newest is None or self._newest.start != start:
            num_frames = min(self.num_frames - start, self._size)
            features = self._features[:, :, start : start + num_frames]
            features = torch.nn.functional.pad(features, (0, self._size - features.shape[2]))
            self._newest = AudioWindow(Source(inputs={self._input_name: features}), start, num_frames)
        return self._newest
