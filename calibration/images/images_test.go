package images

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"image"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onnxq/onnxq/internal/fuzztest"
	"github.com/onnxq/onnxq/tensor"
)

func open(t *testing.T, name string) *Image {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	im, err := decodeBytes(b)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return im
}

// difference returns the largest and mean difference of two images' bytes.
func difference(t *testing.T, a, b *Image) (worst int, mean float64) {
	t.Helper()
	if a.W != b.W || a.H != b.H || a.C != b.C {
		t.Fatalf("%dx%dx%d against %dx%dx%d", a.W, a.H, a.C, b.W, b.H, b.C)
	}
	sum := 0
	for i, v := range a.Pix {
		d := int(v) - int(b.Pix[i])
		d = max(d, -d)
		worst = max(worst, d)
		sum += d
	}
	return worst, float64(sum) / float64(len(a.Pix))
}

// TestResize compares with Pillow 13.0 (testdata/make.py): the same bytes.
func TestResize(t *testing.T) {
	src := open(t, "src.png")
	for _, c := range []struct {
		name string
		w, h int
	}{{"17x11", 17, 11}, {"80x61", 80, 61}, {"37x60", 37, 60}, {"12x29", 12, 29}, {"5x3", 5, 3}, {"1x1", 1, 1}, {"111x2", 111, 2}} {
		for name, f := range map[string]Filter{"bilinear_": Bilinear, "bicubic_": Bicubic} {
			if d, _ := difference(t, src.Resize(c.w, c.h, f), open(t, name+c.name+".png")); d != 0 {
				t.Errorf("%s%s differs by %d", name, c.name, d)
			}
		}
	}
	gray := open(t, "src.png").Luma()
	if d, _ := difference(t, gray, open(t, "gray.png").Luma()); d != 0 {
		t.Errorf("luma differs by %d", d)
	}
	if d, _ := difference(t, gray.Resize(16, 45, Bicubic), open(t, "graybicubic_16x45.png").Luma()); d != 0 {
		t.Errorf("resized luma differs by %d", d)
	}
}

func decodeBytes(b []byte) (*Image, error) { return Decode(bytes.NewReader(b), int64(len(b))) }

// TestDecode compares with what Pillow 13.0 decodes.
func TestDecode(t *testing.T) {
	for _, c := range []struct {
		name string
		most int
	}{
		{"444.jpg", 3}, {"422.jpg", 3}, {"420.jpg", 3}, {"progressive.jpg", 3},
		{"gray.jpg", 1}, {"cmyk.jpg", 4}, {"lossy.webp", 3}, {"lossless.webp", 0}, {"rgba.png", 0},
		{"palette.png", 0}, {"frame.gif", 0}, {"rgb.bmp", 0}, {"rgb.tiff", 0},
	} {
		worst, mean := difference(t, open(t, c.name), open(t, "decoded_"+c.name+".png"))
		t.Logf("%s: worst %d, mean %.4f", c.name, worst, mean)
		if worst > c.most {
			t.Errorf("%s differs by %d", c.name, worst)
		}
	}
}

func TestRecipe(t *testing.T) {
	src := open(t, "src.png")
	apply := func(text string, d tensor.DType, shape ...int) *tensor.Tensor {
		t.Helper()
		r, err := ParseRecipe(text)
		if err != nil {
			t.Fatal(err)
		}
		r, _, err = r.Fit(d, shape)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		x, err := r.Apply(src)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		return x
	}
	mid, _ := src.Resize(20*37/29, 20, Bilinear).Crop(16, 18)
	x := apply("resize=20,crop=16x18,mean=127,std=128,layout=nchw,color=rgb", tensor.Float32, -1, 3, 18, 16)
	for c := range 3 {
		for i := range 16 * 18 {
			if got, want := tensor.As[float32](x)[c*16*18+i], (float32(mid.Pix[3*i+c])-127)/128; got != want {
				t.Fatalf("channel %d pixel %d: %v, want %v", c, i, got, want)
			}
		}
	}
	y := apply("color=bgr,crop=16x18,resize=20,layout=nhwc,scale=255,mean=0.1/0.2/0.3,std=0.5/0.6/0.7", tensor.Float32, 18, 16, 3)
	if len(y.Shape()) != 3 || y.Shape()[2] != 3 {
		t.Fatalf("shape %v", y.Shape())
	}
	for i := range 16 * 18 {
		if got, want := tensor.As[float32](y)[3*i], (float32(mid.Pix[3*i+2])/255-0.1)/float32(0.5); got != want {
			t.Fatalf("pixel %d: %v, want %v", i, got, want)
		}
	}
	z := tensor.As[float32](apply("letterbox=60,filter=bicubic", tensor.Float32, 1, 3, 60, 60))
	in := src.Resize(60, 47, Bicubic)
	if z[0] != 114 || z[60*60-1] != 114 || z[6*60] != float32(in.Pix[0]) || z[52*60] != float32(in.Pix[46*60*3]) || z[53*60] != 114 {
		t.Errorf("letterbox: rows %v %v %v %v", z[5*60], z[6*60], z[52*60], z[53*60])
	}
	if g := apply("resize=8x8", tensor.Float32, 1, 1, 8, 8); g.Shape()[1] != 1 {
		t.Errorf("gray: %v", g)
	}
	if g := apply("scale=1", tensor.Float32, 1, 3, -1, -1); g.Shape()[2] != 29 || g.Shape()[3] != 37 {
		t.Errorf("free size: %v", g)
	}
	if g := apply("mean=128", tensor.Int8, 1, 3, 10, 30); tensor.As[float32](g)[0] < -128 {
		t.Errorf("int8: %v", tensor.As[float32](g)[0])
	}
}

func TestRecipeErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                   "not key=value",
		"resize":             "not key=value",
		"resize=0":           "sides of 1 to",
		"resize=99999":       "sides of 1 to",
		"crop=2x":            "sides of 1 to",
		"crop=2,crop=2":      "given twice",
		"mean=1/2":           "2 values",
		"mean=nan":           "want a number",
		"std=1/0/1":          "cannot be 0",
		"scale=0":            "other than 0",
		"filter=lanczos":     "bilinear or bicubic",
		"color=hsv":          "rgb, bgr or gray",
		"layout=hw":          "nchw or nhwc",
		"pad=256":            "out of range",
		"sharpen=1":          "unknown key",
		"letterbox=8,crop=4": "excludes",
	} {
		if _, err := ParseRecipe(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	for _, c := range []struct {
		text  string
		d     tensor.DType
		shape []int
		want  string
	}{
		{"crop=8", tensor.Float32, []int{1, 3, 9, 9}, "8x8 (width x height), the input float[1,3,9,9] wants 9x9"},
		{"crop=8", tensor.Float32, []int{4, 3, 8, 8}, "batch of 4"},
		{"crop=8", tensor.Float32, []int{1, 8}, "do not fit"},
		{"crop=8", tensor.Float32, []int{1, 7, 8, 8}, "do not fit"},
		{"crop=8,layout=nhwc", tensor.Float32, []int{1, 3, 8, 8}, "layout nhwc"},
		{"crop=8,color=gray", tensor.Float32, []int{1, 3, 8, 8}, "color=gray gives 1 channels"},
		{"scale=1", tensor.Float32, []int{1, 3, -1, 8}, "one side only"},
		{"mean=127", tensor.Uint8, []int{1, 3, 8, 8}, "uint8 cannot hold"},
		{"crop=8", tensor.String, []int{1, 3, 8, 8}, "cannot feed"},
		{"mean=1/2/3", tensor.Float32, []int{1, 1, 8, 8}, "3 values of mean or std for 1 channel"},
	} {
		r, err := ParseRecipe(c.text)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := r.Fit(c.d, c.shape); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s on %v%v: %v, want %q", c.text, c.d, c.shape, err, c.want)
		}
	}
	src := open(t, "src.png")
	if _, err := src.Crop(38, 1); err == nil {
		t.Error("crop outside the image")
	}
}

func TestDefault(t *testing.T) {
	if _, _, err := Default(tensor.Float32, []int{1, 3, 224, 224}); err == nil || !strings.Contains(err.Error(), "--image resize=256,crop=224x224,") {
		t.Errorf("float input: %v", err)
	}
	r, note, err := Default(tensor.Uint8, []int{-1, 20, 10, 3})
	if err != nil || !strings.Contains(note, "cover 10x20") {
		t.Fatalf("%q, %v", note, err)
	}
	x, err := r.Apply(open(t, "src.png"))
	if err != nil || x.Shape()[1] != 20 || x.Shape()[2] != 10 {
		t.Errorf("%v, %v", x, err)
	}
}

// bomb returns the first bytes of a PNG that claims w by h pixels.
func bomb(w, h uint32) []byte {
	b := []byte("\x89PNG\r\n\x1a\n")
	head := binary.BigEndian.AppendUint32([]byte("IHDR"), w)
	head = binary.BigEndian.AppendUint32(head, h)
	head = append(head, 8, 2, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, 13)
	b = append(b, head...)
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(head))
}

func TestHostileImages(t *testing.T) {
	jpg, err := os.ReadFile("testdata/420.jpg")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"empty":   {nil, "known format"},
		"text":    {[]byte("<html>"), "known format"},
		"bomb":    {bomb(60000, 60000), "claims 60000x60000"},
		"cut":     {jpg[:len(jpg)/2], "jpeg image"},
		"no data": {bomb(10, 10), "png image"},
	} {
		if _, err := decodeBytes(c.data); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func FuzzImageHeader(f *testing.F) {
	for _, p := range []string{"*.jpg", "*.webp", "*.gif", "*.bmp", "*.tiff", "src.png"} {
		files, _ := filepath.Glob("testdata/" + p)
		for _, name := range files {
			b, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzztest.Bound(t)
		if cfg, _, err := image.DecodeConfig(bytes.NewReader(b)); err == nil && cfg.Width*cfg.Height > 1<<16 {
			return
		}
		if im, err := decodeBytes(b); err == nil && len(im.Pix) != im.W*im.H*3 {
			t.Fatalf("%d bytes for %dx%d", len(im.Pix), im.W, im.H)
		}
	})
}

func BenchmarkPhoto(b *testing.B) {
	m := image.NewNRGBA(image.Rect(0, 0, 500, 375))
	for i := range m.Pix {
		m.Pix[i] = byte(i * i >> 5)
	}
	var w bytes.Buffer
	png.Encode(&w, m)
	im, err := decodeBytes(w.Bytes())
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		im.Resize(341, 256, Bilinear)
	}
}
