"""Cases of the operators that sample images, select boxes and process signals; results from ONNX Runtime."""
import numpy as np
from golden import run, write

rng = np.random.default_rng(11)
cases = []
i64 = lambda *v: np.array(v, np.int64)
f32 = lambda *v: np.array(v, np.float32)
normal = lambda *s: rng.standard_normal(s).astype(np.float32)


def add(*args, **kw):
    """Adds a case unless ONNX Runtime does not compute it, and says so."""
    try:
        cases.append(run(*args, **kw))
    except Exception as e:
        print("left out:", args[0], kw.get("name"), str(e).splitlines()[0][-120:])


x, grid = normal(2, 3, 5, 6), rng.uniform(-1.4, 1.4, (2, 4, 3, 2)).astype(np.float32)
for mode in ("linear", "nearest", "cubic"):
    for pad in ("zeros", "border", "reflection"):
        for align in (0, 1):
            add("GridSample", [x, grid], mode=mode, padding_mode=pad, align_corners=align, opset=20, name=f"grid {mode} {pad} {align}")
add("GridSample", [normal(1, 2, 3, 4, 5), rng.uniform(-1.2, 1.2, (1, 2, 3, 2, 3)).astype(np.float32)], mode="linear", opset=20, name="grid volume")
add("GridSample", [x, grid], mode="bicubic", opset=16, name="grid opset 16")
for align in (0, 1):
    add("AffineGrid", [normal(2, 2, 3), i64(2, 1, 3, 4)], align_corners=align, opset=20, name=f"affine {align}")
    add("AffineGrid", [normal(2, 3, 4), i64(2, 1, 2, 3, 4)], align_corners=align, opset=20, name=f"affine volume {align}")
rois = np.array([[0, 0, 4, 3], [1.5, 1, 5.5, 4.2], [-1, -1, 9, 9]], np.float32)
for mode in ("avg", "max"):
    for ratio in (0, 2):
        for coord in ("half_pixel", "output_half_pixel"):
            add("RoiAlign", [x, rois, i64(0, 1, 0)], mode=mode, sampling_ratio=ratio, output_height=2, output_width=3, spatial_scale=0.9,
                coordinate_transformation_mode=coord, opset=16, name=f"roi {mode} {ratio} {coord}")
add("RoiAlign", [x, rois, i64(0, 1, 0)], output_height=2, output_width=2, sampling_ratio=2, opset=10, name="roi opset 10")
add("MaxRoiPool", [x, np.array([[0, 0, 0, 3, 3], [1, 2, 1, 5, 4], [1, 4, 4, 9, 9]], np.float32)], pooled_shape=[2, 2], spatial_scale=0.8)
boxes = rng.uniform(0, 10, (2, 12, 4)).astype(np.float32)
scores = rng.uniform(0, 1, (2, 3, 12)).astype(np.float32)
for center in (0, 1):
    add("NonMaxSuppression", [boxes, scores, i64(4), f32(0.3), f32(0.2)], center_point_box=center, opset=11, name=f"boxes {center}")
add("NonMaxSuppression", [boxes, scores, i64(3)], opset=11, name="boxes without thresholds")
add("NonMaxSuppression", [boxes, scores], opset=11, name="no boxes")
add("Col2Im", [normal(2, 12, 9), i64(5, 4), i64(2, 3)], pads=[0, 1, 1, 0], strides=[2, 1], opset=18, name="col2im")
add("Col2Im", [normal(1, 8, 6), i64(4, 5), i64(2, 2)], dilations=[2, 2], opset=18, name="col2im dilated")
for n in (8, 12, 7):
    s = normal(2, n, 1)
    add("DFT", [s, None, np.array(1, np.int64)], opset=20, name=f"dft {n}")
    add("DFT", [s, None, np.array(1, np.int64)], opset=20, onesided=1, name=f"dft one side {n}")
    add("DFT", [normal(2, n, 2), None, np.array(-2, np.int64)], opset=20, inverse=1, name=f"dft back {n}")
add("DFT", [normal(2, 6, 1), np.array(9, np.int64)], axis=1, opset=17, name="dft padded")
add("STFT", [normal(2, 20, 1), np.array(3, np.int64), normal(8)], opset=17, name="stft window")
add("STFT", [normal(1, 20, 1), np.array(4, np.int64), None, np.array(6, np.int64)], onesided=0, opset=17, name="stft frame")
for w in ("HannWindow", "HammingWindow", "BlackmanWindow"):
    for periodic in (0, 1):
        add(w, [np.array(7, np.int64)], periodic=periodic, opset=17, name=f"{w} {periodic}")
add("MelWeightMatrix", [np.array(8, np.int64), np.array(64, np.int64), np.array(8000, np.int64), np.array(20, np.float32), np.array(3800, np.float32)], opset=17)
write("vision.json", cases)
