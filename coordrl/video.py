"""A game as pictures: a video of every decision, and a contact sheet of the whole.

    +---------------------------+  MsPacman               the run
    |                           |  SCORE  LIVES  TIME
    |   the game, in colours    |  what the agent sees | its value estimate
    |                           |  its action, and a bar for every action
    +---------------------------+

One picture is one decision: the frame that the agent decided on, and what it decided. Everything that
never changes is drawn once, and every text once per wording. Only Pillow's own font is needed.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import final

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from coordrl.errors import OutputError, RequestError
from coordrl.suites import FRAMES_PER_STEP

FRAMES_PER_SECOND = 60  # of the emulated console
STEPS_PER_SECOND = FRAMES_PER_SECOND // FRAMES_PER_STEP  # 15: one picture a step plays in real time
SIZE = (1280, 720)  # of a picture, in pixels; multiples of 16, as encoders like them
SHEET_PICTURES = 16  # of a contact sheet, at most
_SHEET_KEPT = 256  # frames in memory while a game lasts: the choice is good to 1/128 of its length

_GAME = (32, 45, 832, 675)  # 5x3 of the emulator's 160x210 pixels; they are 12:7 on a television
_LEFT, _RIGHT = 864, 1248  # the panel
_VIEW = (864, 268, 1032, 436)  # 2x2 of the agent's 84x84 pixels
_CURVE = (1048, 306, 1248, 436)
_CURVE_STEPS = 20 * STEPS_PER_SECOND  # 20 seconds
_BARS = (500, 676)  # top and bottom

_SMOOTH = 4  # text is drawn this much larger and reduced: letters drawn at their size stand unevenly

_PICTURES_IN = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{SIZE[0]}x{SIZE[1]}", "-r", str(STEPS_PER_SECOND))
_VIDEO_OUT = (
    *("-c:v", "libx264", "-pix_fmt", "yuv420p", "-preset", "veryfast", "-crf", "20", "-g", str(5 * STEPS_PER_SECOND)),
    # Said in full: by default an encoder turns RGB into the colours of old television, and a player takes
    # a picture of this height for the new ones, so that every colour would be a little off.
    *("-vf", "scale=out_color_matrix=bt709:out_range=tv", "-colorspace", "bt709", "-color_primaries", "bt709"),
    *("-color_trc", "bt709", "-color_range", "tv", "-movflags", "+faststart"),  # plays while it loads
)

_Colour = tuple[int, int, int]
_Box = tuple[int, int, int, int]
_BACKGROUND: _Colour = (15, 18, 24)
_SUNKEN: _Colour = (25, 30, 39)
_LINE: _Colour = (48, 55, 68)
_DIM: _Colour = (139, 149, 166)
_BRIGHT: _Colour = (235, 239, 245)
_BLUE: _Colour = (86, 180, 233)
_AMBER: _Colour = (255, 196, 84)
_BAR: _Colour = (92, 104, 124)


@dataclass(frozen=True)
class Card:
    """What is the same in every picture of a game."""

    game: str
    agent: str  # with its extractor
    protocol: str
    training_steps: int  # of the checkpoint
    actions: tuple[str, ...]  # the names of the game's actions
    is_policy: bool  # preferences are probabilities; else Q values
    counts_lives: bool  # some games have none

    @property
    def lines(self) -> tuple[str, str]:
        """Who plays, and after how much training."""
        frames = self.training_steps * FRAMES_PER_STEP
        trained = f"after {self.training_steps:,} steps of training ({frames:,} frames)"
        return f"{self.agent} · {self.protocol}", trained


@dataclass(frozen=True)
class Moment:
    """One decision of a game."""

    step: int  # decisions before this one
    frame: NDArray[np.uint8]  # (height, 160, 3), the emulator's colours
    seen: NDArray[np.uint8]  # (84, 84), the newest of the four frames that the agent sees
    score: float  # raw, so far
    lives: int
    value: float  # the value estimate; for DQN the largest Q value
    preferences: NDArray[np.float32]  # (n_actions,), probabilities or Q values
    action: int  # what was sent to the game
    forced: bool = False  # the protocol sent it in the agent's place: FIRE after a lost life
    ending: str = ""  # why this is the last picture; it holds no decision of its own

    def texts(self, card: Card) -> dict[str, str]:
        """Return what the panel says, by what it is about."""
        action = card.actions[self.action]
        return {
            "score": f"{self.score:,.0f}",
            "lives": str(self.lives) if card.counts_lives else "",
            "time": clock(self.step),
            "value": _decimals(self.value),
            "action": f"{action} (by the rules)" if self.forced else action,
        }


def clock(step: int) -> str:
    """Write how long a game has lasted in the console's time: "1:05"."""
    minutes, seconds = divmod(step * FRAMES_PER_STEP // FRAMES_PER_SECOND, 60)
    return f"{minutes}:{seconds:02d}"


def _decimals(value: float) -> str:
    """Write an estimate with as many decimals as tell two of them apart."""
    return f"{value:.3f}" if abs(value) < 1 else f"{value:,.2f}"


@final
class Painter:
    """Draws the moments of one game, in order, each as an RGB picture of `SIZE`."""

    def __init__(self, card: Card) -> None:
        self.card = card
        self._values: deque[float] = deque(maxlen=_CURVE_STEPS)
        self._base = self._draw_base()

    def paint(self, moment: Moment) -> Image.Image:
        """Draw a moment."""
        picture = self._base.copy()
        picture.paste(_enlarge(moment.frame, _GAME), _GAME[:2])
        picture.paste(_enlarge(moment.seen, _VIEW), _VIEW[:2])
        texts = moment.texts(self.card)
        _write(picture, (_LEFT, 174), texts["score"], 44, _BRIGHT)
        _write(picture, (1090, 190), texts["lives"], 28, _BRIGHT)
        _write(picture, (_RIGHT, 190), texts["time"], 28, _BRIGHT, right=True)
        _write(picture, (_CURVE[0], 264), texts["value"], 28, _BLUE)
        _write(picture, (_LEFT + 64, 458), texts["action"], 22, _AMBER)
        self._draw_curve(picture, moment)
        self._draw_bars(picture, moment)
        if moment.ending:
            _draw_banner(picture, moment.ending)
        return picture

    def _draw_base(self) -> Image.Image:
        """Draw what never changes."""
        picture = Image.new("RGB", SIZE, _BACKGROUND)
        draw = ImageDraw.Draw(picture)
        _write(picture, (_LEFT, 38), self.card.game, 36, _BRIGHT)
        for height, line in zip((88, 112), self.card.lines, strict=True):
            _write(picture, (_LEFT, height), line, 16, _DIM)
        for height in (148, 236, 448):
            draw.line((_LEFT, height, _RIGHT, height), _LINE)
        lives = "LIVES" if self.card.counts_lives else ""
        labels = {(_LEFT, 160): "SCORE", (1090, 160): lives, (_LEFT, 246): "THE AGENT SEES", (_LEFT, 463): "ACTION"}
        for place, label in labels.items():
            _write(picture, place, label, 13, _DIM)
        _write(picture, (_RIGHT, 160), "TIME", 13, _DIM, right=True)
        _write(picture, (_CURVE[0], 246), "VALUE ESTIMATE, 20 s", 13, _DIM)
        kind = "probability" if self.card.is_policy else "Q value, lowest to highest"
        _write(picture, (_RIGHT, 463), kind, 13, _DIM, right=True)
        return picture

    def _draw_curve(self, picture: Image.Image, moment: Moment) -> None:
        """Draw the value estimates of the last seconds from the lowest to the highest, the newest at the right."""
        if not moment.ending:
            self._values.append(moment.value)
        values = np.array(self._values)
        low, high = float(values.min(initial=moment.value)), float(values.max(initial=moment.value))
        width, height = 2 * (_CURVE[2] - _CURVE[0]), 2 * (_CURVE[3] - _CURVE[1])  # twice the size, for smooth lines
        plot = Image.new("RGB", (width, height), _SUNKEN)
        draw = ImageDraw.Draw(plot)
        for line in (24, height // 2, height - 24):
            draw.line((0, line, width, line), _LINE, width=2)
        across = (width - 14) * (1 - np.arange(len(values) - 1, -1, -1) / (_CURVE_STEPS - 1))
        down = height / 2 - (values - (low + high) / 2) / max(high - low, 0.02) * (height - 48)
        if len(values) > 1:
            draw.line(np.stack([across, down], axis=1).ravel().tolist(), _BLUE, width=4, joint="curve")
        if len(values) > 0:
            draw.circle((across[-1], down[-1]), 7, _BRIGHT)
        picture.paste(plot.reduce(2), _CURVE[:2])
        _write(picture, (_RIGHT, 278), f"{_decimals(low)} to {_decimals(high)}", 13, _DIM, right=True)

    def _draw_bars(self, picture: Image.Image, moment: Moment) -> None:
        """Draw a bar for each action, the one that was sent in amber; 18 actions in two columns."""
        shares = np.clip(moment.preferences, 0.0, 1.0)
        if not self.card.is_policy:  # Q values lie close together: only their order can be seen from 0
            low, high = float(moment.preferences.min()), float(moment.preferences.max())
            shares = (moment.preferences - low) / max(high - low, 1e-9)
        columns = 1 if len(shares) <= 9 else 2
        rows = -(-len(shares) // columns)
        wide = (_RIGHT - _LEFT - 16 * (columns - 1)) // columns
        step = min((_BARS[1] - _BARS[0]) / rows, 28.0)
        font, names, numbers = (14, 122, 48) if columns == 1 else (11, 94, 34)
        draw = ImageDraw.Draw(picture)
        for index, share in enumerate(shares.tolist()):
            left = _LEFT + index // rows * (wide + 16)
            top = round(_BARS[0] + index % rows * step)
            sent = index == moment.action
            number = f"{100 * share:.0f} %" if self.card.is_policy else _decimals(float(moment.preferences[index]))
            room = (left + names, top + 2, left + wide - numbers, top + round(step) - 4)
            draw.rectangle(room, _SUNKEN)
            draw.rectangle((*room[:2], room[0] + round(share * (room[2] - room[0])), room[3]), _AMBER if sent else _BAR)
            colour, line = _AMBER if sent else _DIM, round(top + (step - 2) / 2 - 0.62 * font)
            _write(picture, (left, line), self.card.actions[index], font, colour)
            _write(picture, (left + wide, line), number, font, colour, right=True)


def write_video(file: Path, pictures: Iterable[Image.Image]) -> None:
    """Encode RGB pictures of `SIZE` as H.264, one for each decision, in real time.

    Raises:
        OutputError: the encoder could not write the file.
        RequestError: there is no encoder.
    """
    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise RequestError(
            "imageio-ffmpeg has no ffmpeg here; install one and name it in IMAGEIO_FFMPEG_EXE"
        ) from error
    # Not imageio_ffmpeg.write_frames: it says neither whether the encoder succeeded nor why it did not.
    command = [program, "-y", "-v", "error", *_PICTURES_IN, "-i", "-", *_VIDEO_OUT, str(file)]
    # In a session of its own, so that Ctrl-C stops the command alone, and the command the encoder.
    encoder = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    assert encoder.stdin is not None
    try:
        for picture in pictures:
            data = picture.tobytes()
            try:
                encoder.stdin.write(data)
            except BrokenPipeError:
                break  # the encoder has stopped, and said why
    except BaseException:
        encoder.kill()
        raise
    finally:
        _, said = encoder.communicate()
    if encoder.returncode != 0:
        lines = said.decode(errors="replace").strip().splitlines() or [f"exit code {encoder.returncode}"]
        reason = re.sub(r"^\[[^]]*\] ", "", lines[-1])  # without the name of a part of the encoder
        raise OutputError(f"no video can be written to {file.parent}; the encoder says: {reason}")


@final
class ContactSheet:
    """Gathers frames evenly over a game of unknown length, then draws them as one picture."""

    def __init__(self, card: Card) -> None:
        self.card = card
        self._kept: list[Moment] = []
        self._every = 1  # steps between two that are kept
        self._last: Moment | None = None

    def add(self, moment: Moment) -> None:
        """Take note of a moment; they come in order."""
        self._last = moment
        if moment.step % self._every == 0:
            self._kept.append(moment)
        if len(self._kept) > _SHEET_KEPT:
            self._kept = self._kept[::2]
            self._every *= 2

    def chosen(self) -> list[Moment]:
        """Return at most `SHEET_PICTURES` moments, evenly over the game, the first and the last among them."""
        if self._last is None:
            return []
        moments = [moment for moment in self._kept if moment.step < self._last.step] + [self._last]
        wanted = np.linspace(0, self._last.step, min(SHEET_PICTURES, len(moments)))
        steps = np.array([moment.step for moment in moments])
        nearest = sorted({int(np.abs(steps - step).argmin()) for step in wanted})
        return [moments[index] for index in nearest]

    def draw(self) -> Image.Image:
        """Draw the sheet: four frames a row, the time and the score under each."""
        moments = self.chosen()
        wide, high, gap, head = 320, 252, 16, 96
        rows = -(-len(moments) // 4)
        sheet = Image.new("RGB", (4 * wide + 5 * gap, head + rows * (high + 46)), _BACKGROUND)
        _write(sheet, (gap, 14), self.card.game, 34, _BRIGHT)
        _write(sheet, (gap, 60), " · ".join(self.card.lines), 16, _DIM)
        if moments:
            last = moments[-1]
            _write(sheet, (sheet.width - gap, 14), last.texts(self.card)["score"], 34, _AMBER, right=True)
            _write(sheet, (sheet.width - gap, 60), f"{last.ending} · {clock(last.step)}", 16, _DIM, right=True)
        for index, moment in enumerate(moments):
            left, top = gap + index % 4 * (wide + gap), head + index // 4 * (high + 46)
            frame = _enlarge(moment.frame, _GAME).resize((wide, high), Image.Resampling.BOX)
            sheet.paste(frame, (left, top))
            texts = moment.texts(self.card)
            _write(sheet, (left, top + high + 6), texts["time"], 16, _DIM)
            _write(sheet, (left + wide, top + high + 6), texts["score"], 16, _BRIGHT, right=True)
        return sheet


def write_sheet(file: Path, sheet: ContactSheet) -> None:
    """Write a contact sheet as PNG."""
    sheet.draw().save(file, format="PNG", optimize=True)


def make_room(file: Path) -> None:
    """Create a file's folder and check that files can be made in it, before hours of work.

    Raises:
        OutputError: they cannot.
    """
    probe = file.with_name(f".{file.stem}.{os.getpid()}.probe")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
        reason = "it is a folder" if file.is_dir() else ""
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise OutputError(f"{file} cannot be written: {reason}. Choose another place with --video and --sheet")


def _enlarge(pixels: NDArray[np.uint8], box: _Box) -> Image.Image:
    """Enlarge pixels, (height, width) or (height, width, 3), to a box, with sharp edges."""
    return Image.fromarray(pixels).resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.NEAREST)


def _draw_banner(picture: Image.Image, text: str) -> None:
    """Write a few words across the middle of the game; scores are at the top or the bottom."""
    mask = _mask(text, 36)
    left, top = (_GAME[0] + _GAME[2] - mask.width) // 2, (_GAME[1] + _GAME[3] - mask.height) // 2
    ImageDraw.Draw(picture).rectangle(
        (left - 28, top - 14, left + mask.width + 28, top + mask.height + 10), _BACKGROUND
    )
    picture.paste(_AMBER, (left, top), mask)


def _write(
    picture: Image.Image, place: tuple[int, int], text: str, size: int, colour: _Colour, *, right: bool = False
) -> None:
    """Write one line of text with its upper left corner, or the right one, at a place."""
    mask = _mask(text, size)
    picture.paste(colour, (place[0] - mask.width if right else place[0], place[1]), mask)


@lru_cache(maxsize=2048)
def _mask(text: str, size: int) -> Image.Image:
    """Draw a line of text as a mask, once for each wording."""
    font = _font(_SMOOTH * size)
    width, height = int(font.getlength(text)), int(font.getbbox("Hg")[3])  # as high for every text
    mask = Image.new("L", (width + 2 * _SMOOTH, height + 2 * _SMOOTH))
    ImageDraw.Draw(mask).text((0, 0), text, fill=255, font=font)
    return mask.reduce(_SMOOTH)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's own font; it knows Latin letters, but no dashes and arrows."""
    return ImageFont.load_default(size)
