"""Cases of Resize and Upsample; results from ONNX Runtime."""
import numpy as np
from golden import run, write

rng = np.random.default_rng(3)
cases = []
f32 = lambda *v: np.array(v, np.float32)
i64 = lambda *v: np.array(v, np.int64)
x = rng.standard_normal((1, 2, 6, 7)).astype(np.float32)


def add(*args, **kw):
    """Adds a case unless ONNX Runtime does not compute it, and says so."""
    try:
        cases.append(run(*args, **kw))
    except Exception as e:
        print("left out:", kw.get("name"), str(e).splitlines()[0][-120:])


coords = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"]
for scales in (f32(1, 1, 2, 2), f32(1, 1, 0.6, 0.45), f32(1, 1, 1.7, 3.3)):
    for coord in coords:
        for mode in ("nearest", "linear", "cubic"):
            extra = [{}]
            if mode == "nearest":
                modes = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
                if coord == "half_pixel_symmetric":  # whole coordinates come out of roundings there
                    modes = modes[:2]
                extra = [{"nearest_mode": m} for m in modes]
            if mode == "cubic":
                extra = [{}, {"exclude_outside": 1, "cubic_coeff_a": -0.5}]
            if coord == "align_corners" and mode != "nearest" and scales[2] < 1:
                continue  # there the standard's conformance cases say otherwise
            for e in extra:
                add("Resize", [x, None, scales], mode=mode, coordinate_transformation_mode=coord, opset=19, **e,
                    name=f"{mode} {coord} {scales[2]:.2g} {list(e.values())}")
        for mode in ("linear", "cubic"):
            if coord in ("half_pixel", "pytorch_half_pixel"):
                add("Resize", [x, None, scales], mode=mode, antialias=1, coordinate_transformation_mode=coord, opset=19,
                    name=f"antialias {mode} {coord} {scales[2]:.2g}", atol=1e-4)
for policy in ("stretch", "not_larger", "not_smaller"):
    add("Resize", [x, None, None, i64(9, 5)], mode="linear", axes=[2, 3], keep_aspect_ratio_policy=policy, opset=19, name=f"sizes {policy}")
for mode in ("linear", "nearest", "cubic"):
    add("Resize", [x, f32(0, 0, 0.1, -0.2, 1, 1, 0.8, 1.2), None, i64(1, 2, 4, 9)], mode=mode,
        coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=7.0, opset=13, name=f"crop {mode}")
add("Resize", [x, None, f32(1, 1, 2.5, 2)], mode="nearest", coordinate_transformation_mode="tf_half_pixel_for_nn", opset=11 + 2, name="nn")
add("Resize", [x, f32(1, 1, 2.3, 0.7)], mode="nearest", opset=10, name="opset 10 nearest")
add("Resize", [x, f32(1, 1, 2.3, 1.7)], mode="linear", opset=10, name="opset 10 linear")
add("Upsample", [x, f32(1, 1, 2, 3)], mode="nearest", opset=9, name="upsample 9")
add("Upsample", [x], mode="linear", scales=[1.0, 1.0, 2.0, 3.0], opset=7, name="upsample 7")
for d in (np.uint8, np.int8, np.int32, np.float64):
    add("Resize", [rng.integers(0, 100, (1, 2, 5, 4)).astype(d), None, f32(1, 1, 2, 1.5)], mode="nearest", opset=19, name=f"nearest {d.__name__}")
add("Resize", [rng.standard_normal((2, 3, 4, 5, 6)).astype(np.float32), None, None, i64(2, 3, 7, 5, 3)], mode="linear", opset=19, name="volume")
write("resize.json", cases)
