"""Frames to H.264 and back: exact frame numbers, closed groups of 8, bytes that repeat.

Small pictures suffer from the usual settings: at 64 pixels chroma subsampling alone costs 10 dB,
so colour is kept at full resolution. No B-frames: every packet is shown when it is decoded, and
videos of single episodes can be joined into one file without encoding again.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from kairos_env.agents.data.files import BrokenDataError

Codec = Literal["h264", "lossless"]
CODECS: tuple[Codec, ...] = get_args(Codec)
GROUP = 8  # frames from one key frame to the next: the most that a random read decodes in vain

# codec: (encoder, pixel format, options)
_ENCODERS: dict[Codec, tuple[str, str, dict[str, str]]] = {
    "h264": ("libx264", "yuv444p", {"crf": "16", "g": str(GROUP), "bf": "0"}),
    "lossless": ("libx264rgb", "rgb24", {"qp": "0", "g": str(GROUP), "bf": "0"}),
}
# what a reader of the file will find: (codec name, pixel format)
STORED_AS: dict[Codec, tuple[str, str]] = {
    "h264": ("h264", "yuv444p"),
    "lossless": ("h264", "gbrp"),
}


def frame_rate(fps: float) -> Fraction:
    """The frame rate as the fraction that video files store."""
    return Fraction(fps).limit_denominator(10_000)


def encode(frames: NDArray[np.uint8], *, fps: float, codec: Codec = "lossless") -> bytes:
    """One MP4 of the frames (T, H, W, 3). The same frames give the same bytes."""
    import av

    encoder, pixel_format, options = _ENCODERS[codec]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream(encoder, rate=frame_rate(fps), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format
        stream.codec_context.thread_count = 1
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def join(videos: Sequence[bytes], file: BinaryIO, *, fps: float) -> list[int]:
    """Join MP4s made by `encode`, packet by packet; returns the frame at which each begins."""
    import av

    starts, shown = [], 0
    try:
        with av.open(file, "w", format="mp4") as output:
            stream: Any = None
            for video in videos:
                starts.append(shown)
                with av.open(io.BytesIO(video), "r") as source:
                    if stream is None:
                        stream = output.add_stream_from_template(source.streams.video[0])
                        stream.time_base = 1 / frame_rate(fps)
                    for packet in source.demux(video=0):
                        if packet.dts is None:  # the demuxer's flush packet
                            continue
                        packet.stream = stream
                        packet.pts = packet.dts = shown
                        packet.duration = 1
                        packet.time_base = 1 / frame_rate(fps)
                        output.mux(packet)
                        shown += 1
    except av.FFmpegError as error:
        # Closing after a failed write fails once more, and hides the reason behind its own error.
        reason = error.__context__
        raise reason if isinstance(reason, OSError) else error from None
    return starts


class VideoReader:
    """Random access to the frames of one file, by number.

    Conversion to RGB goes through one `VideoReformatter` that is kept: building it anew for every
    frame is what makes `frame.to_ndarray("rgb24")` three times slower at 64 pixels.
    """

    def __init__(self, path: Path, *, size: tuple[int, int] | None = None) -> None:
        from av.video.reformatter import VideoReformatter

        self.path = path
        self._size = size
        self._reformatter: Any = VideoReformatter()
        self._container: Any = _open(path)
        self._stream: Any = self._container.streams.video[0]
        self._stream.codec_context.thread_count = 1
        self.fps = float(self._stream.average_rate or self._stream.base_rate)
        # Frame n is shown at n / rate exactly; numbers are recovered by rounding.
        self._ticks = Fraction(1) / (self._stream.average_rate * self._stream.time_base)
        self._first = int(self._stream.start_time or 0)
        self._frames: Iterator[Any] = iter(())
        self._next = -1  # number of the frame that `_frames` yields next; -1 when unknown

    @property
    def num_frames(self) -> int:
        """Frames that the container claims to hold."""
        return int(self._stream.frames)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the frames as they are returned."""
        return self._size or (int(self._stream.height), int(self._stream.width))

    @property
    def stored_as(self) -> tuple[str, str]:
        """Codec and pixel format of the file."""
        return str(self._stream.codec_context.name), str(self._stream.codec_context.pix_fmt)

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Frames `start` to `stop - 1` as (n, H, W, 3) uint8."""
        height, width = self.shape
        pixels = np.empty((stop - start, height, width, 3), np.uint8)
        wanted = start
        for number, image in self._decode_from(start) if stop > start else ():
            if number != wanted:
                break
            pixels[number - start] = image
            wanted += 1
            if wanted == stop:
                return pixels
        if stop > start:
            raise BrokenDataError(
                f"{self.path}: expected frames {start} to {stop - 1}, found no frame {wanted}; "
                "the file may be truncated"
            )
        return pixels

    def stream(self) -> Iterator[NDArray[np.uint8]]:
        """All frames, one after the other."""
        for _, image in self._decode_from(0):
            yield image

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _decode_from(self, start: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        import av

        try:
            # A short walk forward is cheaper than a seek, which would decode from a key frame.
            if self._next < 0 or not self._next <= start < self._next + GROUP:
                offset = self._first + round(start * self._ticks)
                self._container.seek(offset, stream=self._stream, backward=True)
                self._frames = self._container.decode(self._stream)
            for frame in self._frames:
                number = round((frame.pts - self._first) / self._ticks)
                self._next = number + 1
                if number >= start:
                    yield number, self._to_rgb(frame)
        except (av.FFmpegError, EOFError) as error:
            self._next = -1
            raise BrokenDataError(f"{self.path} cannot be decoded: {error}") from error
        self._next = -1

    def _to_rgb(self, frame: Any) -> NDArray[np.uint8]:
        height, width = self.shape
        image = self._reformatter.reformat(
            frame, width=width, height=height, format="rgb24", interpolation="AREA"
        ).to_ndarray()
        return np.asarray(image, np.uint8)


class VideoPool:
    """Videos that stay open between reads, the most recently used ones only."""

    def __init__(self, *, size: tuple[int, int] | None = None, keep: int = 8) -> None:
        self._size = size
        self._keep = keep
        self._readers: dict[Path, VideoReader] = {}  # in order of use

    def read(self, path: Path, start: int, stop: int) -> NDArray[np.uint8]:
        """Frames `start` to `stop - 1` of a file."""
        reader = self._readers.pop(path, None) or VideoReader(path, size=self._size)
        self._readers[path] = reader
        if len(self._readers) > self._keep:
            oldest = next(iter(self._readers))
            self._readers.pop(oldest).close()
        return reader.read(start, stop)


def _open(path: Path) -> Any:
    import av

    if not path.is_file():
        raise BrokenDataError(f"{path} is missing: the dataset's index says that this video exists")
    try:
        container = av.open(str(path))
    except (av.FFmpegError, EOFError) as error:
        raise BrokenDataError(
            f"{path} is not a readable video ({error}); the file may be truncated"
        ) from error
    if not container.streams.video:
        raise BrokenDataError(f"{path} holds no video stream")
    return container


def resize(frames: Iterable[NDArray[np.uint8]], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Frames to (T, height, width, 3), averaging over the area that a new pixel covers."""
    import av
    from av.video.reformatter import VideoReformatter

    reformatter: Any = VideoReformatter()
    height, width = size
    images = [
        reformatter.reformat(
            av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"),
            width=width,
            height=height,
            format="rgb24",
            interpolation="AREA",
        ).to_ndarray()
        for frame in frames
    ]
    return np.asarray(np.stack(images), np.uint8)


def decode_images(
    pictures: Iterable[bytes], *, size: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """Pictures given as PNG or JPEG files to (n, H, W, 3)."""
    import av

    images: list[NDArray[np.uint8]] = []
    for number, content in enumerate(pictures):
        try:
            with av.open(io.BytesIO(content), "r") as container:
                image: Any = next(container.decode(video=0)).to_ndarray(format="rgb24")
                images.append(image)
        except (av.FFmpegError, StopIteration, TypeError) as error:
            raise BrokenDataError(f"picture {number} cannot be decoded: {error}") from error
    return resize(images, size) if size else np.asarray(np.stack(images), np.uint8)
