"""Writes the arrays beside this file with NumPy: python make.py"""
import numpy as np

a = np.arange(24).reshape(2, 3, 4)
for t in ["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"]:
    x = (a % 2).astype(t) if t == "b1" else ((a - 5) if t[0] in "ifc" else a).astype(t)
    np.save(f"{t}.npy", x)
np.save("scalar.npy", np.float32(1.5))
np.save("empty.npy", np.zeros((0, 3), np.int64))
np.save("vector.npy", np.arange(5, dtype=np.int16))
np.save("fortran_f4.npy", np.asfortranarray((a - 5).astype("f4")))
np.save("big_f4.npy", (a - 5).astype(">f4"))
np.save("big_c8.npy", (a - 5).astype(">c8"))
np.save("objects.npy", np.array([{}, 1], dtype=object))
np.save("strings.npy", np.array(["a", "bc"]))
np.save("records.npy", np.zeros(2, dtype=[("x", "f4"), ("y", "i4")]))
np.savez("stored.npz", x=a.astype("f4"), **{"in/put:0": np.array([1, 2], np.int64)})
np.savez_compressed("deflated.npz", x=a.astype("f4"), z=np.zeros(5000, np.float32))
