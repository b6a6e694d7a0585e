#!/usr/bin/env python3
"""Reads a folder of event files with TensorBoard's own reader and prints what it found.

Run by hand (python3 -m venv env; env/bin/pip install tensorboard):

    NACRE_KEEP_EVENTS=/tmp/run nacre_tests "events for TensorBoard's own reader"
    env/bin/python tests/golden/check_tensorboard.py /tmp/run --expect-sample

--expect-sample compares with what that test writes; without it any folder can be looked at.
"""
import argparse
import io
import struct
import sys
import wave
import zlib

from tensorboard.backend.event_processing import event_accumulator
from tensorboard.util import tensor_util


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--expect-sample", action="store_true")
    args = parser.parse_args()

    accumulator = event_accumulator.EventAccumulator(args.folder, size_guidance={"tensors": 0, "scalars": 0,
                                                                                 "images": 0, "audio": 0})
    accumulator.Reload()
    tags = accumulator.Tags()
    found = {}
    for tag in tags["scalars"]:
        found[tag] = [(e.step, e.value) for e in accumulator.Scalars(tag)]
    for tag in tags["images"]:
        for e in accumulator.Images(tag):
            png = e.encoded_image_string
            width, height = struct.unpack(">II", png[16:24])
            assert (width, height) == (e.width, e.height), "size of the image and of the PNG differ"
            idat = png[41:41 + struct.unpack(">I", png[33:37])[0]]
            assert len(zlib.decompress(idat)) == height * (3 * width + 1)
            found.setdefault(tag, []).append((e.step, width, height))
    for tag in tags["audio"]:
        for e in accumulator.Audio(tag):
            with wave.open(io.BytesIO(e.encoded_audio_string)) as w:
                assert w.getframerate() == e.sample_rate and w.getnframes() == e.length_frames
            found.setdefault(tag, []).append((e.step, e.sample_rate, e.length_frames, e.content_type))
    for tag in tags["tensors"]:
        for e in accumulator.Tensors(tag):
            value = tensor_util.make_ndarray(e.tensor_proto)
            found.setdefault(tag, []).append((e.step, value.tolist() if value.size < 10 else value.shape))
    for tag, values in sorted(found.items()):
        print(f"{tag}: {values}")

    if args.expect_sample:
        # The restart mark at step 8 dropped steps 8 and later of the first run.
        assert found["loss/total"] == [(7, 1.25), (8, 0.5)], found["loss/total"]
        assert found["picture"] == [(7, 8, 256)], found["picture"]
        assert found["sound/0"] == [(7, 16000.0, 2000, "audio/wav")], found["sound/0"]
        assert found["configuration"] == [(0, [b"**bold**"])], found["configuration"]
        print("as expected")
    return 0


if __name__ == "__main__":
    sys.exit(main())
