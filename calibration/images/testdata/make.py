"""Writes the images beside this file, and what Pillow makes of them: python make.py"""
import numpy as np
from PIL import Image

rng = np.random.default_rng(7)
h, w = 29, 37
y, x = np.mgrid[0:h, 0:w]
a = np.stack([x * 255 / w, y * 255 / h, 127 + 120 * np.sin(x * y / 9)], 2)
a += rng.normal(0, 25, a.shape)
a[8:14, 10:20] = [255, 0, 0]
src = Image.fromarray(np.clip(a, 0, 255).astype("u1"), "RGB")
src.save("src.png")
src.convert("L").save("gray.png")
for tw, th in [(17, 11), (80, 61), (37, 60), (12, 29), (5, 3), (1, 1), (111, 2)]:
    for name, f in [("bilinear", Image.BILINEAR), ("bicubic", Image.BICUBIC)]:
        src.resize((tw, th), f).save(f"{name}_{tw}x{th}.png")
src.convert("L").resize((16, 45), Image.BICUBIC).save("graybicubic_16x45.png")
smooth = src.resize((74, 57), Image.BICUBIC)
for name, s in [("444", "4:4:4"), ("422", "4:2:2"), ("420", "4:2:0")]:
    smooth.crop((0, 0, 73, 57)).save(f"{name}.jpg", quality=90, subsampling=s)
smooth.save("progressive.jpg", quality=80, progressive=True)
smooth.convert("L").save("gray.jpg", quality=90)
smooth.convert("CMYK").save("cmyk.jpg", quality=95)
src.save("lossy.webp", quality=80)
src.save("lossless.webp", lossless=True)
src.convert("RGBA").save("rgba.png")
src.quantize(32).save("palette.png")
src.quantize(16).save("frame.gif")
src.save("rgb.bmp")
src.save("rgb.tiff", compression="tiff_deflate")
for f in ["444.jpg", "422.jpg", "420.jpg", "progressive.jpg", "gray.jpg", "cmyk.jpg", "lossy.webp",
          "lossless.webp", "rgba.png", "palette.png", "frame.gif", "rgb.bmp", "rgb.tiff"]:
    Image.open(f).convert("RGB").save("decoded_" + f + ".png")
