package kernels

import (
	"fmt"
	"math"
	"slices"
	"testing"
)

// sequence returns n numbers in [-8, 8) of a linear congruential generator.
func sequence(n int, seed uint32) []float32 {
	x := make([]float32, n)
	for i := range x {
		seed = seed*1664525 + 1013904223
		x[i] = float32(int32(seed>>8)-1<<23) / (1 << 20)
	}
	return x
}

func unaryOf(op UnaryOp) func(dst, x []float32) {
	return func(dst, x []float32) { Unary(op, dst, x) }
}

func bitsOf(x []float32) []uint32 {
	b := make([]uint32, len(x))
	for i, v := range x {
		b[i] = math.Float32bits(v)
	}
	return b
}

// TestRuntimeBits has results of onnxruntime 1.32.0 (CPU, AVX-512) on sequence
// (n, 1), gamma being sequence(n, 2) and beta sequence(n, 3).
func TestRuntimeBits(t *testing.T) {
	for _, c := range []struct {
		name string
		f    func(dst, x []float32)
		want []uint32
	}{
		{"Exp", unaryOf(Exp), []uint32{
			0x3c719da0, 0x3dfce379, 0x3f88fd3e, 0x41d43594, 0x3a456c34, 0x3dfde493, 0x42a248f6, 0x401d4285,
			0x39e4fdfc, 0x41147db4, 0x3c9720e8, 0x3e93e00f, 0x40888fe2, 0x435b68b8, 0x3c6c573e, 0x450921de,
			0x43a0f138, 0x3d80552c, 0x41949302, 0x3fd3be58, 0x3c2e036b, 0x3aea2ba5, 0x3a87f0fa,
		}},
		{"Erf", unaryOf(Erf), []uint32{
			0xbf800000, 0xbf7f351e, 0x3d9c9b3d, 0x3f7fffc4, 0xbf800000, 0xbf7f3166, 0x3f800000, 0x3f4be1ca,
			0xbf800000, 0x3f7f9549, 0xbf800000, 0xbf6bc53b, 0x3f75b7fb, 0x3f800000, 0xbf800000, 0x3f800000,
			0x3f800000, 0xbf7ffa22, 0x3f7ffda4, 0x3f05ffd5, 0xbf800000, 0xbf800000, 0xbf800000,
		}},
		{"Gelu", unaryOf(Gelu), []uint32{
			0xb85b44df, 0xbd1c3835, 0x3d128611, 0x4051b0d8, 0x80000000, 0xbd1d7270, 0x408cad87, 0x3f3bba11,
			0x80000000, 0x400cbe12, 0xb908c0b8, 0xbe083d4a, 0x3fac1a8a, 0x40ac8290, 0xb847c0b6, 0x40f63170,
		}},
		{"Softmax", Softmax, []uint32{
			0x36abc0e6, 0x3833c451, 0x39c2c23a, 0x3c16d98f, 0x348c56b5, 0x38347b14, 0x3ce6b8ce, 0x3a5f93dd,
			0x3422c7ad, 0x3b531c63, 0x36d6dc55, 0x38d23c44, 0x3ac226bf, 0x3d9bf7c2, 0x36a800fa, 0x3f42f64c,
			0x3de4d01a, 0x37b6739f, 0x3bd33aae, 0x3a1684cc, 0x3677656c, 0x35267606, 0x34c144d5,
		}},
		{"LogSoftmax", LogSoftmax, []uint32{
			0xc142ec02, 0xc120ebd6, 0xc0fcbcb4, 0xc0960242, 0xc17283ee, 0xc120db9a, 0xc06475f8, 0xc0e223f8,
			0xc17b3b75, 0xc0b79d76, 0xc13f56cb, 0xc1135368, 0xc0d079c4, 0xc024cc4c, 0xc143466c, 0xbe8b7462,
			0xc00c450c, 0xc12bc63f, 0xc0a16a9c, 0xc0eecd4e, 0xc1482c62, 0xc164b19a, 0xc16d651d,
		}},
		{"LayerNorm", func(dst, x []float32) { LayerNorm(dst, x, sequence(23, 2), sequence(23, 3), 1e-5) }, []uint32{
			0xbf6fb19c, 0x3f7f5f5f, 0x409f4ee0, 0x41012f40, 0xc0dd4558, 0x40f3ce3d, 0xc059cb88, 0xbffa7bce,
			0xc1018101, 0x40c7f83a, 0xc0faf412, 0x40a929fb, 0x3fa26628, 0x41262d2e, 0x40619b3c, 0x409ec580,
			0xc1880c11, 0xbf93fa1f, 0x40423006, 0xc060cc80, 0xc07e39f9, 0xc0f5e5fa, 0xc0d7e061,
		}},
		{"RMSNorm", func(dst, x []float32) { RMSNorm(dst, x, sequence(23, 2), 1e-5) }, []uint32{
			0x407eca33, 0x3e99c8fd, 0xbd9b1e61, 0x403613b0, 0xc0b329f0, 0x40377c47, 0xc0947c4e, 0xbdb6b359,
			0xbf331c38, 0x3fc93de7, 0xc03b2fd6, 0x3fe00877, 0x3eb40d57, 0x40b2b60a, 0x3f0e7a2a, 0xbfbb759a,
			0xc12112ce, 0x3fc8e2f2, 0x40a1667a, 0xbe17307b, 0xc0d4618b, 0xc073277b, 0xc0bdf0bd,
		}},
		{"QuickGelu", func(dst, x []float32) { Swish(dst, x, 1.702) }, []uint32{
			0xbb52fdf9, 0xbd6ce80a, 0x3d13058b, 0x405102ec, 0xb81285d5, 0xbd6e036a, 0x408c9977, 0x3f3d3000,
			0xb7778e34, 0x400b7176, 0xbb922d5b, 0xbe090c2c, 0x3fab3e82, 0x40ac7dfd, 0xbb4c4a23, 0x40f6314f,
			0x40b8c3a3, 0xbcc99a55, 0x4039b300, 0x3eb4e815, 0xbb02200e, 0xb90b66d5, 0xb86fa2c7,
		}},
		{"Silu", func(dst, x []float32) { Swish(dst, x, 1) }, []uint32{
			0xbd7b0106, 0xbe6b6937, 0x3d0fb7a2, 0x404a2db7, 0xbbb154e5, 0xbe6bcb8a, 0x408af74c, 0x3f2393c4,
			0xbb5d5aff, 0x4000b7e9, 0xbd941f95, 0xbe8e7f90, 0x3f967943, 0x40abba33, 0xbd76e358, 0x40f614ba,
			0x40b833b1, 0xbe27426b, 0x40316e6e, 0x3ea09e4b, 0xbd43a41e, 0xbc38e159, 0xbbe949b8,
		}},
		{"GeluTanh", unaryOf(GeluTanh), []uint32{
			0xb7c95916, 0xbd1b7e71, 0x3d12860f, 0x4051b5a9, 0x80000000, 0xbd1cbc17, 0x408cada6, 0x3f3bb266,
			0x80000000, 0x400cc2c7, 0xb898398f, 0xbe087787, 0x3fac1318, 0x40ac8290, 0xb7b53545, 0x40f63170,
			0x40b8c630, 0xbbef089b, 0x403ab00b, 0x3eb27e38, 0xb688590d, 0x80000000, 0x80000000,
		}},
		{"SigmoidRatio", unaryOf(SigmoidRatio), []uint32{
			0x3c6e1aa0, 0x3de11804, 0x3f045797, 0x3f76b324, 0x3a454600, 0x3de1e39c, 0x3f7ce22b, 0x3f35f389,
			0x39e4e800, 0x3f671954, 0x3c946420, 0x3e65795a, 0x3f4f6694, 0x3f7ed6aa, 0x3c68fae0, 0x3f7fe225,
			0x3f7f3508, 0x3d7187d0, 0x3f72eb82, 0x3f1f8d00, 0x3c2c2f20, 0x3ae9c000, 0x3a87ce00,
		}},
		{"TanhRatio", unaryOf(TanhRatio), []uint32{
			0xbf7fe37f, 0xbf784f7e, 0x3d8ac9f5, 0x3f7f45fc, 0xbf7fffec, 0xbf784011, 0x3f7fec19, 0x3f373fe3,
			0xbf7ffffa, 0x3f7a1fb3, 0xbf7fd366, 0xbf589447, 0x3f6559a1, 0x3f7ffd46, 0xbf7fe4bb, 0x3f7ffff9,
			0x3f7ffebb, 0xbf7dff59, 0x3f7e8516, 0x3eedf2f2, 0xbf7ff137, 0xbf7fff97, 0xbf7fffdc,
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			eachLevel(t, func(t *testing.T) {
				dst := make([]float32, len(c.want))
				c.f(dst, sequence(len(c.want), 1))
				if got := bitsOf(dst); !slices.Equal(got, c.want) {
					t.Errorf("got  %#x\nwant %#x", got, c.want)
				}
			})
		})
	}
}

// TestLineSum has results of ReduceSum of onnxruntime 1.32.0 on the rows of a
// matrix of four.
func TestLineSum(t *testing.T) {
	for _, c := range []struct {
		n    int
		want []uint32
	}{
		{3, []uint32{0x402571e8, 0x4106ff3d, 0xc0e1a956, 0x4050f1d4}},
		{6, []uint32{0x40bd60be, 0x416b420e, 0xc0587d48, 0x41547fff}},
		{13, []uint32{0xc1722856, 0xc1568a52, 0x419b0b5a, 0xc183a6c0}},
		{23, []uint32{0xc19b300f, 0x3f04df90, 0xc23478d7, 0x41b05631}},
		{30, []uint32{0xbe3a0580, 0x41e5585c, 0xc1323058, 0x4194424e}},
	} {
		t.Run(fmt.Sprint(c.n), func(t *testing.T) {
			eachLevel(t, func(t *testing.T) {
				x := sequence(4*c.n, uint32(c.n))
				got := make([]float32, 4)
				for r := range got {
					got[r] = LineSum(x[r*c.n:][:c.n], r*c.n)
				}
				if b := bitsOf(got); !slices.Equal(b, c.want) {
					t.Errorf("got %#x, want %#x", b, c.want)
				}
			})
		})
	}
	if s := LineSum(nil, 3); s != 0 {
		t.Errorf("sum of nothing is %g", s)
	}
}
